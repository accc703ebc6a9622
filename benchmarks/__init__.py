"""Targets, sessions, profiles; measure and compare ONNX files. Needs onnx, numpy and onnxruntime, never torch."""

from __future__ import annotations

# The functions `bench`, `gate`, `machine`, `measure` and `profile` take the place of the modules that they come from.
from .bench import Options, bench
from .gate import Ask, gate
from .inputs import make_inputs
from .machine import fingerprint, machine, usable_threads
from .measure import Comparison, Latency, compare, measure
from .profile import Profile, profile
from .records import Ratio, Report
from .rule import Rule
from .sessions import open_session, provider_options, providers_that_load
from .settings import BenchmarkSettings
from .target import TARGETS, Target, resolve_target, why_unmeasurable
from .wheels import conflicting_wheels

__all__ = [
    "TARGETS",
    "Ask",
    "BenchmarkSettings",
    "Comparison",
    "Latency",
    "Options",
    "Profile",
    "Ratio",
    "Report",
    "Rule",
    "Target",
    "bench",
    "compare",
    "conflicting_wheels",
    "fingerprint",
    "gate",
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
