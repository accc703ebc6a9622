"""Tasks: data, metrics, loss, and the ways in and out of a model.

``load_task`` is the door; ``Task`` in ``base`` is what everything else relies on. Importing this brings no torch, so
that a config can be read without it.
"""

from distill.tasks.families import FAMILIES, SOURCES, Data, data_settings, load_task, require_source
from distill.tasks.settings import DataSettings

__all__ = ["FAMILIES", "SOURCES", "Data", "DataSettings", "data_settings", "load_task", "require_source"]
