"""The fastest precision that keeps a budget on a device: made, judged, measured side by side, and chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import TYPE_CHECKING, Literal

from onnx import ModelProto

from distill.benchmarks import units
from distill.benchmarks.target import Target
from distill.errors import UserError
from distill.export.canonical import canonical
from distill.export.graph import initializers, operator
from distill.export.stripping import strip, to_bytes
from distill.intervals import Estimate
from distill.outputs import Output
from distill.quantize.half import to_half
from distill.quantize.record import QuantizeRecord
from distill.quantize.repair_loop import Attempt, Judge, Loss, Repairs, repair
from distill.quantize.sensitivity import Sensitivity
from distill.quantize.settings import QuantizeSettings
from distill.quantize.weights import to_blocks, to_dynamic
from distill.types import Feed, Progress

if TYPE_CHECKING:
    from distill.quantize.quantization_aware import Train

FLOAT = "float32"
_BLOCK_BYTES = 1 << 20  # of product weights, below which reading them takes no time to speak of
_SAME_SIZE = 1.02
Precision = Literal["auto", "int8", "dynamic", "int4", "fp16", "bf16"]
Objective = Literal["latency", "size"]
Measure = Callable[[Sequence[ModelProto]], Sequence[Sequence[Estimate]]]


@dataclass(frozen=True)
class Candidate:
    """A graph that could ship.

    `ratios` are its times over the float one's, below 1 faster, one for each batch size that the target is asked for;
    empty where it was not timed. `record` is None for the float graph itself, whose loss is nothing.
    """

    name: str
    model: ModelProto
    record: QuantizeRecord | None
    loss: Loss
    within: bool
    file_bytes: int
    ratios: tuple[Estimate, ...] = ()

    @property
    def ratio(self) -> Estimate | None:
        """The geometric mean over the batch sizes, with the mean of the intervals; None where it was not timed."""
        if not self.ratios:
            return None
        parts = ([getattr(ratio, bound) for ratio in self.ratios] for bound in ("value", "low", "high"))
        return Estimate(*(geometric_mean(part) for part in parts))


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why; `candidates` in the order in which they were made, the float graph first.

    `attempts` are the ways that static int8 was tried, `sensitivity` is that of its layers where it came to that.
    `judged` says as what the answers were judged.
    """

    chosen: Candidate
    why: str
    candidates: tuple[Candidate, ...]
    attempts: tuple[Attempt, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    warnings: tuple[str, ...] = ()
    judged: str = ""


def choose(
    core: ModelProto,
    settings: QuantizeSettings,
    *,
    target: Target,
    calibration: Iterable[Feed],
    rows: Sequence[Feed],
    judge: Judge,
    measure: Measure,
    max_drop: float,
    precision: Precision = "auto",
    objective: Objective = "latency",
    train: Train | None = None,
    output: Output | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Make every precision that may be the fastest on the target, and choose the fastest that keeps the budget.

    Args are those of `repair`, and:
        measure: returns each graph's times over those of the first one, at each batch size of the target.
        precision: only this one beside float32, where it is not `auto`.
        objective: what is chosen by, as `decide` has it.

    Raises:
        UserError: nothing of what was asked for can be made of this graph; the message says why of each.
    """
    candidates, repairs, refused = [_float(core)], Repairs(), list[str]()
    core = canonical(core)  # whose constants are none of its inputs
    for kind in _kinds(core, target) if precision == "auto" else (precision,):
        try:
            if kind == "int8":
                repairs = repair(
                    core,
                    settings,
                    target=target,
                    calibration=calibration,
                    rows=rows,
                    judge=judge,
                    max_drop=max_drop,
                    train=train,
                    output=output,
                    progress=progress,
                )
                variants = repairs.offered(max_drop)
            else:
                model, record = _converted(kind, core, target, calibration)
                variants = [Attempt(record.precision, settings, model, record, judge(model))]
            candidates += [_candidate(variant, max_drop) for variant in variants]
        except UserError as error:
            refused.append(f"{kind}: {error}")
    if len(candidates) == 1:
        raise UserError("\n".join(refused))
    candidates = _timed(candidates, measure)
    chosen, why = decide(candidates, max_drop, objective)
    attempts, sensitivity = tuple(repairs.attempts), tuple(repairs.sensitivity)
    return Choice(chosen, why, tuple(candidates), attempts, sensitivity, tuple(refused))


def decide(candidates: Sequence[Candidate], max_drop: float, objective: Objective = "latency") -> tuple[Candidate, str]:
    """Choose the fastest that keeps the budget and is surely faster than float32; of equals, the smaller file.

    With the objective `size` it is the smallest that keeps the budget, whatever its speed, float32 among them.

    One file serves all batch sizes that were timed. So one that is surely slower than float32 at any of them is none to
    choose, and a later candidate takes the place of the first that is left only where it is not surely slower than that
    at any. Of those the fastest in the mean is taken. Files within 2 % of the smallest count as no larger.
    Where nothing could be timed, the smallest that keeps the budget is taken.
    """
    plain, others = candidates[0], [candidate for candidate in candidates[1:] if candidate.within]
    if not others:
        nearest = min(candidates[1:], key=lambda candidate: candidate.loss)
        return plain, (
            f"no other precision keeps the budget: {nearest.name} comes closest and loses "
            f"{100 * nearest.loss.drop:.2f} points, {100 * max_drop:g} are allowed"
        )
    if objective == "size":
        return _smallest(plain, others)
    timed = [(ratio, candidate) for candidate in others if (ratio := candidate.ratio) is not None]
    if not timed:
        least = min(others, key=lambda candidate: candidate.file_bytes)
        return least, f"{least.name} is the smallest that keeps the budget; nothing was timed"
    faster = [pair for pair in timed if pair[0].high < 1 and all(each.low <= 1 for each in pair[1].ratios)]
    if not faster:
        return plain, _nothing_faster(timed)
    faster = [(ratio, candidate) for ratio, candidate in faster if _nowhere_slower(candidate, faster[0][1])]
    first = min((ratio for ratio, _ in faster), key=lambda ratio: ratio.value)
    equal = [(ratio, candidate) for ratio, candidate in faster if ratio.low <= first.high]
    limit = _SAME_SIZE * min(candidate.file_bytes for _, candidate in equal)
    small = [(ratio, candidate) for ratio, candidate in equal if candidate.file_bytes <= limit]
    ratio, best = min(small, key=lambda pair: pair[0].value)
    larger = len(equal) - len(small)
    tied = f", and smaller than {larger} that cannot be told from it" if larger else ""
    return best, f"{best.name} is {1 / ratio.value:.2f}× as fast as float32{tied}"


def _nothing_faster(timed: Sequence[tuple[Estimate, Candidate]]) -> str:
    """Say that nothing is faster than float32, or that the timing could not tell."""
    ratio, best = min(timed, key=lambda pair: pair[0].value)
    slow = [each for each in best.ratios if each.low > 1]
    places = " at each batch size" if len(best.ratios) > 1 else ""
    open_ones = [(ratio, each) for ratio, each in timed if not any(size.low > 1 for size in each.ratios)]
    if open_ones:
        ratio, nearest = min(open_ones, key=lambda pair: pair[0].value)
        return (
            f"whether {nearest.name} is faster than float32{places} could not be resolved: it is "
            f"{units.faster(ratio, '{:.2f}'.format)} as fast; more --pairs or --seconds, or a quieter machine, may tell"
        )
    worst = min(slow, key=lambda each: each.value)
    speed = units.faster(worst, "{:.2f}".format)
    return f"nothing that keeps the budget is faster{places}: {best.name} is {speed} as fast"


def _smallest(plain: Candidate, others: Sequence[Candidate]) -> tuple[Candidate, str]:
    """Choose the smallest file, whatever its speed."""
    best = min([plain, *others], key=lambda candidate: candidate.file_bytes)
    if best is plain:
        return plain, "nothing that keeps the budget is smaller than float32"
    speed = f"{units.faster(best.ratio, '{:.2f}'.format)} as fast" if best.ratio is not None else "not timed"
    return best, f"{best.name} is {plain.file_bytes / best.file_bytes:.2f}× smaller than float32, and {speed}"


def _nowhere_slower(candidate: Candidate, first: Candidate) -> bool:
    """Whether a candidate is as fast as the first one at every batch size, as far as was measured."""
    return all(mine.low <= theirs.high for mine, theirs in zip(candidate.ratios, first.ratios, strict=True))


def _kinds(core: ModelProto, target: Target) -> tuple[Precision, ...]:
    """List what may be the fastest on a target, cheapest first."""
    least = {"dynamic": 1, "int4": _BLOCK_BYTES}  # of bytes in products, for a format to gain anything
    products = _product_bytes(core)
    return tuple(kind for kind in target.formats if products >= least.get(kind, 0))


def _product_bytes(core: ModelProto) -> int:
    """Count the bytes of constant matrices that activations are multiplied by."""
    constants = initializers(core.graph)
    names = {node.input[1] for node in core.graph.node if operator(node) in ("MatMul", "Gemm")}
    sizes = [constants[name] for name in names if name in constants and len(constants[name].dims) == 2]
    return sum(4 * tensor.dims[0] * tensor.dims[1] for tensor in sizes)


def _converted(
    kind: Precision, core: ModelProto, target: Target, calibration: Iterable[Feed]
) -> tuple[ModelProto, QuantizeRecord]:
    if kind in ("fp16", "bf16"):
        return to_half(core, samples=calibration, kind=kind)
    if kind == "int4":
        return to_blocks(core)
    return to_dynamic(core, target=target)


def _float(core: ModelProto) -> Candidate:
    slim = strip(core)
    return Candidate(FLOAT, slim, None, Loss(0.0, 0.0), within=True, file_bytes=len(to_bytes(slim)))


def _candidate(attempt: Attempt, max_drop: float) -> Candidate:
    record, loss = attempt.record, attempt.loss
    return Candidate(attempt.name, attempt.model, record, loss, loss.drop <= max_drop, record.file_bytes)


def _timed(candidates: Sequence[Candidate], measure: Measure) -> list[Candidate]:
    """Time what keeps the budget beside the float graph, all in turns."""
    within = [candidate for candidate in candidates if candidate.within]
    if len(within) < 2:
        return list(candidates)
    measured = measure([candidate.model for candidate in within])
    ratios = {candidate.name: tuple(times) for candidate, times in zip(within, measured, strict=True)}
    return [replace(candidate, ratios=ratios.get(candidate.name, ())) for candidate in candidates]
