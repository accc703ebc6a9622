"""What a run has so far, and what is said of it in the end: the comparison, the verdict, the warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.benchmarks import machine
from distill.benchmarks.verdict.remarks import of_machine
from distill.config.loading import to_dict
from distill.errors import Exit
from distill.intervals import Estimate
from distill.runtime.artifacts import Artifact
from distill.runtime.budget import Figures, unresolved
from distill.runtime.context import Context
from distill.runtime.decisions import SHIP
from distill.runtime.facts import Quality, Verdict
from distill.runtime.records import RunResult, StageRecord, Total
from distill.stages.common import StageResult

STAGES = ("teacher", "control", "student", "prune", "quantize", "export")


@dataclass
class RunState:
    """What a run has so far: records and results by stage, the decisions, the last stage that was kept."""

    records: dict[str, StageRecord] = field(default_factory=dict)
    results: dict[str, StageResult] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    final: str = "teacher"
    bases: dict[str, str] = field(default_factory=dict)
    """The stage that each stage that was judged began with."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """Return what may ship, in the order in which it was made."""
        first = next(iter(self.bases.values()), self.final)
        return (first, *self.bases)

    @property
    def ordered(self) -> tuple[StageRecord, ...]:
        """Return the records in the order of the stages."""
        return tuple(self.records[name] for name in STAGES if name in self.records)

    @property
    def teacher(self) -> Artifact:
        """Return what everything is compared with."""
        return self.results["teacher"].artifact

    @property
    def best(self) -> Artifact:
        """Return what the next stage begins with, and what ships in the end."""
        return self.results[self.final].artifact

    def revise(self, name: str, **fields: Any) -> None:
        """Set fields of a stage's record."""
        self.records[name] = dataclasses.replace(self.records[name], **fields)

    def note(self, name: str, **facts: Any) -> None:
        """Set fields of the detail of a stage's record."""
        self.revise(name, detail=dataclasses.replace(self.records[name].detail, **facts))


def _figures(shipped: StageRecord) -> Figures:
    """Return the figures of the file that ships, on the test split."""
    return {
        "drop": lambda: (shipped.test and shipped.test.drop) or 0.0,
        "latency": lambda: shipped.latency[0].p50_s if shipped.latency else None,
        "size": lambda: shipped.file_bytes,
    }


def result_of(ctx: Context, run: RunState, *, smoke: bool) -> RunResult:
    """Put together what a finished run has found out; ``smoke`` marks one that proves nothing and has no verdict."""
    shipped = run.records["export"] if run.records["export"].status != "off" else run.records[run.final]
    size = run.records["teacher"].file_bytes
    drop = shipped.test.drop if shipped.test else None
    figures = _figures(shipped)
    verdicts = {constraint.name: constraint.verdict(figures) for constraint in ctx.budget}
    speedup = shipped.latency[0].speedup if shipped.latency else None
    if shipped.latency and speedup is None:
        speedup = Estimate(1.0, 1.0, 1.0)
    total = Total(
        speedup=speedup,
        size_ratio=size / shipped.file_bytes if size and shipped.file_bytes else None,
        metric=ctx.task.metric,
        metric_drop=Estimate(drop.value, drop.low, drop.high) if drop else Estimate(0.0, 0.0, 0.0),
        verdict=verdicts["drop"],
        latency_verdict=verdicts.get("latency"),
        verdicts=verdicts,
    )
    board = next((row.board for row in shipped.latency if row.board), None)
    warnings = _run_warnings(ctx, run, shipped.test, verdicts, smoke=smoke)
    missed = "missed" in verdicts.values() or (SHIP in run.decisions and total.verdict != "met")
    return RunResult(
        folder=str(ctx.folder.path),
        task=ctx.config.task,
        config=to_dict(ctx.config),
        machine=machine() | {"training": str(ctx.device)} | ({"timed on": board} if board else {}),
        target=ctx.target.facts() | {"unmeasured": ctx.unmeasured},
        stages=run.ordered,
        final=run.final,
        comparison=total,
        warnings=warnings,
        decisions=run.decisions,
        deployable=not smoke and ctx.config.export is not None,
        exit_code=int(Exit.VERDICT_NO if missed and not smoke else Exit.OK),
    )


def _run_warnings(
    ctx: Context, run: RunState, test: Quality | None, verdicts: Mapping[str, Verdict], *, smoke: bool
) -> tuple[str, ...]:
    warnings = [*ctx.folder.repairs, *ctx.task.warnings, *ctx.target.warnings]
    if not smoke:  # which is cut to few samples
        warnings += ctx.weak_splits
    if SHIP in run.decisions:
        warnings.append(
            f"{run.decisions[SHIP]['reason']}; a larger student, more epochs, or another "
            f"{' or '.join(constraint.field for constraint in ctx.budget)} would mend it"
        )
    unused = [name for name in ctx.replay if name not in run.decisions]
    if unused:
        warnings.append(
            f"--decisions: {', '.join(unused)}: not used, as this configuration leaves nothing of it to decide"
        )
    loaded = run.records["teacher"].detail.loaded
    if loaded and "test" not in ctx.task.given_splits:
        warnings.append(
            "leakage: the teacher was loaded, and the split into train, validation and test is ours; if it was trained "
            "on samples that are test samples here, its accuracy is too good; give your own split in the data section"
        )
    if run.records["student"].status == "off" and ctx.config.distill is None and ctx.config.student != "teacher":
        warnings.append("distill is off: the student was not trained, the run went on from the teacher's weights")
    if test and test.drop and test.drop.verdict == "unresolved":
        warnings.append(f"test: {unresolved(test.drop)}")
    warnings += [
        f"{constraint.field}: the {constraint.name} was not measured on the target, so the budget is open"
        for constraint in ctx.budget
        if verdicts[constraint.name] == "unresolved" and not constraint.firm
    ]
    remarks = run.records[run.final].detail.timing
    if remarks:
        warnings.append(f"timing of the shipped file: {'; '.join(remarks)}")
    warnings += of_machine(row.contended_share for record in run.ordered for row in record.latency)
    if ctx.unmeasured:
        warnings.append(f"latency is unmeasured: {ctx.unmeasured}")
    return tuple(dict.fromkeys(warnings))
