"""Every remark that a benchmark makes on what it found, each with what mends it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.benchmarks import units
from distill.benchmarks.target import TARGETS

if TYPE_CHECKING:
    from distill.benchmarks.records import Case, Model

_MUCH_CONTENDED = 0.5


def of_model(model: Model) -> tuple[str, ...]:
    """Remarks on one file: values that are not finite, weights that are slow for what they are."""
    remarks, name = [], model.facts.name
    if not model.finite:
        remarks.append(f"{name}: its outputs are not all finite for these inputs; give real rows with --inputs")
    return (*remarks, *subnormal_remark(name, model.facts.subnormal))


def subnormal_remark(name: str, count: int) -> tuple[str, ...]:
    """Say that so many weights of a file are slow for what they are; empty where none is."""
    if not count:
        return ()
    return (
        f"{name}: {count} weights are subnormal (denormal) numbers, with which a CPU calculates many times more "
        "slowly; set those below 1e-30 to zero before the export",
    )


def of_case(pairs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Remarks on one timing: warm-ups that did not settle, throttling, a clock that moved."""
    remarks = []
    unsettled = sum(not pair["settled"] for pair in pairs)
    if unsettled:
        remarks.append(f"{unsettled} of {len(pairs)} warm-ups ended while calls were still getting faster")
    throttled = sum(any(pair["throttled"]) for pair in pairs)
    if throttled:
        remarks.append(f"the GPU was throttled in parts of {throttled} of {len(pairs)} sessions; those were left out")
    clocks = [pair["clock_mhz"] for pair in pairs if pair["clock_mhz"]]
    if clocks and max(clocks) > 1.05 * min(clocks):
        remarks.append(f"the GPU's clock moved between {min(clocks)} and {max(clocks)} MHz; `nvidia-smi -lgc` fixes it")
    return tuple(remarks)


def of_report(models: Sequence[Model], cases: Sequence[Case], machine: Mapping[str, Any]) -> tuple[str, ...]:
    """Remarks on all of it: too many threads, a busy machine, one that a file was not made for."""
    usable = machine["threads"]["usable"]
    remarks = [
        f"{threads} threads were asked for, but only {usable} can run at once on this machine"
        for threads in sorted({case.threads for case in cases if case.threads > usable})
    ]
    remarks += of_machine(case.contended_share for case in cases)
    for model in models:
        remarks += isa_remark(model, machine)
    runtimes = {model.facts.name: model.runtime for model in models if model.runtime}
    if len(set(runtimes.values())) > 1:
        remarks.append("onnxruntime " + ", ".join(f"{version} ran {name}" for name, version in runtimes.items()))
    return tuple(remarks)


def of_machine(contended_shares: Iterable[float]) -> tuple[str, ...]:
    """Remark on a machine that was busy with something else, by the shares of turns that met it."""
    busy = max(contended_shares, default=0.0)
    if busy <= _MUCH_CONTENDED:
        return ()
    return (
        f"something else slowed the machine for {100 * busy:.0f} % of the time: p50 as found says more about that "
        "than about the files; the ratios hold, as all files met it alike",
    )


def isa_remark(model: Model, machine: Mapping[str, Any]) -> tuple[str, ...]:
    """Say when a file was made for another kind of processor than this machine's."""
    name, made_for, here = model.facts.name, model.facts.made_for, machine["family"]
    if made_for in TARGETS and TARGETS[made_for].processor and made_for != here:
        return (f"{name}: was made for {made_for}, this machine is {here}: its latency here says little about there",)
    return saturation_remark(name, model.facts.saturating, here, machine["flags"])


def saturation_remark(name: str, share: float, family: str, flags: Iterable[str] | None) -> tuple[str, ...]:
    """Say when a file's integer sums can saturate on a processor; empty where they cannot.

    Args:
        name: what the file is called.
        share: `saturating_share` of it.
        family: the family of the processor.
        flags: of the processor; None where the system does not show them.
    """
    processor = TARGETS.get(family)
    isa = processor.relied_on(share) if processor is not None and processor.saturates(flags) else None
    if isa is None:
        return ()
    lacks = "lacks" if flags is not None else "may lack"
    return (
        f"{name}: {units.share(share)} of its neighbouring int8 weight pairs rely on {isa.upper()}, which this "
        f"machine's processor {lacks}: their sums can saturate, and its answers are then wrong; quantize it with "
        "--reduce-range",
    )
