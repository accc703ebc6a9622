"""Targets, sessions, profiles; measure and compare ONNX files. Needs onnx, numpy and onnxruntime, never torch."""

from __future__ import annotations

# The functions `compare`, `machine`, `measure` and `profile` take the place of the modules that they come from.
from .inputs import make_inputs
from .machine import fingerprint, machine, usable_threads
from .measure import Comparison, Latency, compare, measure
from .profile import Profile, profile
from .records import Ratio
from .sessions import open_session, provider_options, providers_that_load
from .settings import BenchmarkSettings
from .target import TARGETS, Target, resolve_target, why_unmeasurable
from .wheels import conflicting_wheels

__all__ = [
    "TARGETS",
    "BenchmarkSettings",
    "Comparison",
    "Latency",
    "Profile",
    "Ratio",
    "Target",
    "compare",
    "conflicting_wheels",
    "fingerprint",
    "machine",
    "make_inputs",
    "measure",
    "open_session",
    "profile",
    "provider_options",
    "providers_that_load",
    "resolve_target",
    "usable_threads",
    "why_unmeasurable",
]
