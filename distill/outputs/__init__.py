"""What the outputs of a model hold, and what two models' outputs for the same rows say about each other.

This package imports numpy and the leaves only; every package of the product may import it.
"""

from .evidence import degenerate as degenerate

__all__ = ["degenerate"]
