"""What a model ships to: provider, number format, threads. Everything that depends on the target asks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from distill.benchmarks.timing.machine import VNNI, cpu_flags, family, gpus
from distill.errors import UserError

TargetName = Literal["x86", "arm", "cuda", "tensorrt"]
TARGETS: tuple[TargetName, ...] = ("x86", "arm", "cuda", "tensorrt")


@dataclass(frozen=True)
class Target:
    """A kind of device, and the form of model that it runs fastest.

    `precision` is what the shipped file is made of, `scheme` the types of activations and weights in an int8 file,
    `reduce_range` whether weights keep to 7 bits so that a processor without VNNI does not saturate. `measure` is a
    command that has things timed on the device itself, where that is another machine: it gets a bundle folder and
    brings back the result of its `runner.py`. `options` go to the provider beside or instead of our own.
    """

    name: str
    provider: str
    precision: Literal["int8", "fp16"]
    scheme: Literal["u8s8", "s8s8", "none"]
    reduce_range: bool
    threads: int = 1
    batch_sizes: tuple[int, ...] = (1, 32)
    measure: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def _x86(threads: int, batch_sizes: tuple[int, ...]) -> Target:
    """U8S8 on the CPU, safe for the processor at hand, or for any where that one cannot be seen."""
    flags = cpu_flags() if family() == "x86" else None
    reduce_range = flags is None or not flags & VNNI
    warnings: tuple[str, ...] = ()
    if flags is None:
        warnings = (
            "target x86: the flags of its processor cannot be seen from here, so int8 weights keep to 7 bits "
            "(reduce_range), which is safe without VNNI; set quantize.reduce_range=false if it has VNNI",
        )
    return Target("x86", "CPUExecutionProvider", "int8", "u8s8", reduce_range, threads, batch_sizes, warnings=warnings)


def _arm(threads: int, batch_sizes: tuple[int, ...]) -> Target:
    return Target("arm", "CPUExecutionProvider", "int8", "s8s8", False, threads, batch_sizes)


def _cuda(threads: int, batch_sizes: tuple[int, ...]) -> Target:
    return Target("cuda", "CUDAExecutionProvider", "fp16", "none", False, threads, batch_sizes)


def _tensorrt(threads: int, batch_sizes: tuple[int, ...]) -> Target:
    return Target("tensorrt", "TensorrtExecutionProvider", "int8", "s8s8", False, threads, batch_sizes)


_MAKERS: dict[str, Callable[[int, tuple[int, ...]], Target]] = {
    "x86": _x86,
    "arm": _arm,
    "cuda": _cuda,
    "tensorrt": _tensorrt,
}


def resolve_target(
    name: str | None,
    device: Literal["cpu", "cuda"] = "cpu",
    *,
    threads: int | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    measure: str | None = None,
) -> Target:
    """Look up the target called `name`; with None the device itself (`cuda`, or this machine's own processor).

    `threads` None means 1, the count at which two files compare best. Raises UserError for an unknown name, for a
    count below 1, and where no name is given on a processor that is neither x86 nor ARM. `measure` is the command that
    has things timed on the device.
    """
    chosen = name if name is not None else "cuda" if device == "cuda" else family()
    if chosen not in _MAKERS:
        known = ", ".join(TARGETS)
        if name is None:
            raise UserError(f"target: there is none for this machine's processor, {chosen!r}; name one of {known}")
        raise UserError(f"target={name!r}: must be one of {known}")
    if threads is not None and threads < 1:
        raise UserError(f"benchmark.threads={threads}: must be at least 1")
    sizes = tuple(batch_sizes)
    if not sizes or min(sizes) < 1:
        raise UserError(f"benchmark.batch_sizes={list(sizes)}: must hold at least one size, each at least 1")
    made = _MAKERS[chosen](threads or 1, sizes)
    return made if measure is None else dataclasses.replace(made, measure=measure)


def target_of_provider(provider: str) -> Target:
    """Make a target of any execution provider, for measuring alone: what a file for it looks like is not known here.

    A provider that one of the named targets has gives that target. Raises UserError for a name that onnxruntime does
    not know.
    """
    import onnxruntime

    known = {one.removesuffix("ExecutionProvider").lower(): one for one in onnxruntime.get_all_providers()}
    full = known.get(provider.lower().removesuffix("executionprovider"))
    if full is None:
        raise UserError(f"--provider {provider}: onnxruntime knows {', '.join(sorted(known))}")
    if full == "CPUExecutionProvider":
        return resolve_target(None)
    for name in ("cuda", "tensorrt"):
        made = resolve_target(name)
        if made.provider == full:
            return made
    return Target(full.removesuffix("ExecutionProvider").lower(), full, "int8", "none", False)


def why_unmeasurable(target: Target) -> str | None:
    """Say why nothing can be timed for `target` on this machine, or None where it can be tried.

    Only the machine is asked. A GPU that is there with a provider that does not load is an error of the set-up and
    shows when a session is opened.
    """
    if target.measure is not None:
        return None
    if target.name in ("x86", "arm"):
        here = {"x86": "x86-64", "arm": "ARM"}.get(family(), family())
        return None if family() == target.name else f"this machine is {here}, the target is {target.name}"
    if target.name not in ("cuda", "tensorrt"):
        return None
    return None if gpus() else f"this machine has no NVIDIA GPU that can be seen, the target is {target.name}"
