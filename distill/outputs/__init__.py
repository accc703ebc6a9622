"""What the outputs of a model hold, and what two models' outputs for the same rows say about each other.

This package imports numpy and the leaves only; every package of the product may import it.
"""

from distill.outputs.recognition import UNKNOWN as UNKNOWN
from distill.outputs.recognition import Evidence as Evidence
from distill.outputs.recognition import Tail as Tail
from distill.outputs.recognition import note as note
from distill.outputs.recognition import tell as tell
from distill.outputs.recognition import tell_or_numbers as tell_or_numbers

from .drops import Comparison as Comparison
from .drops import Metric as Metric
from .drops import degenerate as degenerate
from .kinds import KINDS as KINDS
from .kinds import Kind as Kind
from .kinds import Output as Output
from .kinds import of_shape as of_shape
from .labels import checked_labels as checked_labels
