"""Errors that carry the exit code of the command line, so that no caller has to guess one.

This module imports nothing; every package of the product may import it.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a process ends with. The same meaning for every verb."""

    OK = 0
    VERDICT_NO = 1
    USER = 2
    INCONCLUSIVE = 3
    NOT_COMPARABLE = 4
    NOT_MEASURED = 5
    DEFECT = 70
    INTERRUPTED = 130


class DistillError(Exception):
    """Something went wrong that we foresaw; the message names the field, the value and the mend."""

    exit_code: Exit = Exit.DEFECT


class UserError(DistillError):
    """Something that the user can mend: usage, config, data, a file, a folder in use, a full disk."""

    exit_code = Exit.USER


class NotComparableError(DistillError):
    """Two things that cannot be compared: other inputs, another machine."""

    exit_code = Exit.NOT_COMPARABLE


class NotMeasuredError(DistillError):
    """A measurement that did not happen: the provider did not load, the process died, no samples."""

    exit_code = Exit.NOT_MEASURED
