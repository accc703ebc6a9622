"""Targets, sessions, profiles; measure and compare ONNX files. Needs onnx, numpy and onnxruntime, never torch."""

from __future__ import annotations

from distill.benchmarks.onnx_file.inputs import make_inputs
from distill.benchmarks.onnxruntime_wheels import conflicting_wheels
from distill.benchmarks.timing.machine import fingerprint, machine, usable_threads
from distill.benchmarks.timing.measure import Comparison, Latency, compare, measure
from distill.benchmarks.timing.profile import Profile, profile
from distill.benchmarks.timing.sessions import open_session, providers_that_load

# The functions `bench`, `gate`, `machine`, `measure` and `profile` take the place of the modules that they come from.
from distill.benchmarks.verdict.bench import Options, bench
from distill.benchmarks.verdict.gate import Limits, gate
from distill.benchmarks.verdict.rule import Rule

from .records import Report
from .settings import BenchmarkSettings
from .target import TARGETS, Target, resolve_target, why_unmeasurable

__all__ = [
    "TARGETS",
    "BenchmarkSettings",
    "Comparison",
    "Latency",
    "Limits",
    "Options",
    "Profile",
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
    "providers_that_load",
    "resolve_target",
    "usable_threads",
    "why_unmeasurable",
]
