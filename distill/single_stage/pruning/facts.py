"""What the reports of the verb `prune` show, from its outcome alone, in words and units."""

from __future__ import annotations

from dataclasses import dataclass

from distill.benchmarks import units
from distill.prune.record import GroupRecord
from distill.single_stage.pruning.outcome import Outcome


@dataclass(frozen=True)
class Layer:
    """A layer's output channels and seconds before and after; None where it was not timed, 0 channels where it went."""

    name: str
    before: int
    after: int
    before_s: float | None
    after_s: float | None

    @property
    def left(self) -> float:
        """Share of the channels that stayed."""
        return self.after / self.before if self.before else 1.0

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Before, after, share left, and the two latencies, as text."""
        after = str(self.after) if self.after else "gone"
        times = (units.duration(self.before_s), units.duration(self.after_s) if self.after else units.DASH)
        return (str(self.before), after, units.percent(self.left, 0), *times)


def layers(outcome: Outcome) -> list[Layer]:
    """Return every layer, in the order of the model."""
    record = outcome.record
    found = []
    for name, (before, after) in record.widths.items():
        first, last = record.layer_seconds.get(name, (None, None))
        found.append(Layer(name, before, after, first, last))
    return found


def changed(outcome: Outcome) -> list[Layer]:
    """Return the layers that lost channels, those that lost the largest share first."""
    return sorted((one for one in layers(outcome) if one.after != one.before), key=lambda one: (one.left, -one.before))


def groups(outcome: Outcome) -> list[GroupRecord]:
    """Return the groups with a histogram, those that lost the largest share first."""
    shown = [one for one in outcome.record.groups if one.stayed and sum(one.stayed) + sum(one.went)]
    return sorted(shown, key=lambda one: one.after / one.before if one.before else 1.0)


def summary(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    """Return (what, before, after, how they compare), a row a figure."""
    record = outcome.record
    rows = [
        ("MACs", record.macs_before, record.macs_after, units.count),
        ("parameters", record.parameters_before, record.parameters_after, units.count),
    ]
    found = [(name, show(before), show(after), _left(before, after)) for name, before, after, show in rows]
    if outcome.file_bytes is not None:
        before, after = outcome.file_bytes
        found.append(("ONNX file", units.size(before), units.size(after), _left(before, after)))
    found.append(_latency(outcome))
    if outcome.quality is not None:
        one = outcome.quality
        name = f"{one.measure}, {one.rows} rows" if one.labelled else f"answers, {one.rows} rows"
        shown = (units.percent(one.before), units.percent(one.after)) if one.labelled else (units.DASH, units.DASH)
        lost = f"drop {units.drop(one.drop)}" if one.labelled else f"changed {units.metric(one.drop, one.rows)}"
        found.append((name, *shown, lost))
    return found


def _left(before: float, after: float) -> str:
    return f"{units.percent(after / before)} left" if before else units.DASH


def _latency(outcome: Outcome) -> tuple[str, str, str, str]:
    timed = outcome.latency
    if timed is None:
        return "latency", units.DASH, units.DASH, "unmeasured"
    name = f"p50, batch {timed.batch}"
    return name, units.duration(timed.before_s), units.duration(timed.after_s), units.speedup(timed.speedup)


def measured_on(outcome: Outcome) -> str:
    """Say on what was timed, in which number format, and what the interval rests on."""
    timed = outcome.latency
    if timed is None:
        return f"not timed: {outcome.unmeasured or outcome.why}"
    versions = outcome.machine["versions"]
    return (
        f"{units.line(outcome.machine['cpu'])}, {timed.threads} thread(s), {timed.provider}, {timed.format}, "
        f"onnxruntime {versions.get('onnxruntime')}; {timed.session_pairs} session pairs in turns, 95 % interval"
    )


def how(outcome: Outcome) -> list[tuple[str, str]]:
    """Say how channels were chosen and what was done afterwards."""
    record = outcome.record
    name, value = record.asked
    found = [
        ("asked for", f"{name} {value:g}"),
        ("importance", record.importance),
        ("target", outcome.target),
        ("whole blocks gone", ", ".join(record.blocks) or "none"),
        ("epochs of distillation from the unpruned model", str(outcome.epochs)),
    ]
    if outcome.quality is not None and outcome.quality.judged:
        found.append(("answers", outcome.quality.judged))
    if outcome.sparse is not None:
        one = outcome.sparse
        found.append(
            ("zeros", f"{one.pattern}: {units.percent(one.share_achieved)} of {units.count(one.weights)} weights")
        )
        zipped = f"{units.size(one.zipped_bytes_before)} to {units.size(one.zipped_bytes_after)}"
        found.append(("weights, compressed", zipped))
    return found


def headline(outcome: Outcome) -> str:
    """Say the result in one sentence."""
    speed = f"{units.speedup(outcome.latency.speedup)} as fast" if outcome.latency else "not timed"
    record = outcome.record
    macs = _left(record.macs_before, record.macs_after)
    return (
        f"{outcome.model}: MACs {macs}, parameters {_left(record.parameters_before, record.parameters_after)}, {speed}"
    )


def loading(out: str, model: str) -> str:
    """Return the lines of Python that load what was written, and say that the function which made it is trusted."""
    registered = model.partition(":")[0] in ("timm", "torchvision", "transformers")
    trust = "" if registered else f", trust={model!r}"
    return f"from distill.prune import load\n\nmodel = load({out!r}{trust})  # an nn.Module in eval mode"


MOVED = (
    "The function or package that made the unpruned model has to be importable; where it has moved, say so: "
    'load(folder, "package.module:function"). model.onnx needs onnxruntime only.'
)
