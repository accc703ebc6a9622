"""What the verb `quantize` tried: as a report (the candidates, the layers that cost most, the remarks) and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from distill.benchmarks import Report, units
from distill.benchmarks.records import Model, Row
from distill.benchmarks.units import DASH
from distill.documents import plain
from distill.quantize.choose_precision import Candidate, Choice
from distill.quantize.repair_loop import Loss
from distill.rendering.document import Block, Document, Note, Notes, Section, Table, Text

_MOST = 10  # layers


def document(choice: Choice, report: Report | None) -> Document:
    """Lay out the candidates, the sensitivity of layers where it was measured, and the remarks."""
    blocks: list[Block] = [_candidates(choice, report)]
    if choice.judged:
        blocks.append(Text(choice.judged, "faint"))
    if choice.sensitivity:
        blocks.append(_sensitivity(choice))
    warnings = Notes([Note(warning) for warning in _warnings(choice, report)], warnings=True)
    candidates = Section("Candidates", [*blocks, warnings], "both")
    return Document(f"Quantized: {choice.chosen.name}", "quantization report", [Note(choice.why)], [candidates])


def kept_float(choice: Choice) -> set[str]:
    """Name the outputs of the layers that stay float in the static int8 candidate."""
    models = [candidate.model for candidate in choice.candidates]
    attempts = (attempt for attempt in choice.attempts if any(attempt.model is model for model in models))
    return {name for attempt in attempts for name in attempt.floats}


def _measured(report: Report | None) -> dict[str, tuple[Sequence[Row], Model]]:
    """Find each timed candidate's rows and file in the report, which calls the files as the candidates are called."""
    if report is None:
        return {}
    by_file = zip(*(case.rows for case in report.cases), strict=True)
    return {model.facts.name: (rows, model) for model, rows in zip(report.models, by_file, strict=True)}


def _candidates(choice: Choice, report: Report | None) -> Table:
    """Lay the candidates out; of several batch sizes each has a row."""
    measured = _measured(report)
    batches = [str(case.batch) for case in report.cases] if report is not None else []
    several = len(batches) > 1
    rows = []
    for candidate in choice.candidates:
        timed, model = measured.get(candidate.name, ((), None))
        mark = "ships" if candidate is choice.chosen else "" if candidate.within else "over budget"
        mark = "no answers" if candidate.loss.fault else mark
        share = units.share(model.integer_share) if model is not None and model.compute_nodes else DASH
        size = units.size(candidate.file_bytes)
        for place in range(max(1, len(timed))):
            row = timed[place] if timed else None
            batch = (batches[place] if row else "",) if several else ()
            speed = (units.duration(row.p50_s) if row else DASH, _speedup(candidate, row))
            first, last = ((candidate.name, _drop(candidate), size), (share, mark))
            if place:
                first, last = ("", "", ""), ("", "")
            rows.append((*first, *batch, *speed, *last))
    batch_head = ("batch",) if several else ()
    return Table(("precision", "drop", "size", *batch_head, "p50", "speed-up", "integer", ""), rows)


def _speedup(candidate: Candidate, row: Row | None) -> str:
    if row is None or row.ratio is None or candidate.record is None:
        return DASH
    return f"{1 / row.ratio.value:.2f}× [{1 / row.ratio.high:.2f}, {1 / row.ratio.low:.2f}]"


def _drop(candidate: Candidate) -> str:
    if candidate.record is None:
        return "baseline"
    text, interval = units.points(candidate.loss.drop, unit=False), candidate.loss.interval
    if text == DASH:
        return text
    bounds = [] if interval is None else [units.points(bound, unit=False) for bound in (interval.low, interval.high)]
    return f"{text} pts" + (f" [{', '.join(bounds)}]" if bounds else "")


def _sensitivity(choice: Choice) -> Table:
    """Lay out the layers that cost most, worst first, and which of them stayed float."""
    floats = kept_float(choice)
    worst = sorted(choice.sensitivity, key=lambda layer: layer.price, reverse=True)[:_MOST]
    rows = [
        (
            layer.name or layer.output,
            layer.operator,
            f"{layer.divergence:.2g}",
            units.duration(layer.saved_s),
            "stays float" if layer.output in floats else "",
        )
        for layer in worst
    ]
    return Table(("layer", "operator", "divergence", "saves", ""), rows, numbers=3, title="layers alone in int8")


def _warnings(choice: Choice, report: Report | None) -> list[str]:
    warnings = [*choice.warnings]
    if report is None:
        within = any(candidate.within for candidate in choice.candidates[1:])
        warnings.append(f"nothing was timed: {'the target is not at hand' if within else 'nothing keeps the budget'}")
    else:
        warnings += [*report.warnings, *(warning for case in report.cases for warning in case.warnings)]
        measured = _measured(report)
        # Those on the float file hold whatever ships: it is what the others are made from.
        for candidate in (choice.candidates[0], choice.chosen):
            warnings += measured[candidate.name][1].warnings if candidate.name in measured else ()
    warnings += choice.chosen.record.warnings if choice.chosen.record is not None else ()
    return list(dict.fromkeys(warnings))


def to_json(choice: Choice, *, model: str, target: str, max_drop: float, rows: int) -> str:
    """Write down what was tried and chosen by ``rows``; drops are fractions, and what is not finite is null."""
    record = {
        "model": model,
        "target": target,
        "max_drop": max_drop,
        "rows": rows,
        "judged": choice.judged,
        "chosen": choice.chosen.name,
        "why": choice.why,
        "candidates": [
            {
                "name": candidate.name,
                "within": candidate.within,
                **_lost(candidate.loss),
                "file_bytes": candidate.file_bytes,
                "ratio": candidate.ratio,
                "ratios": candidate.ratios,
                "record": candidate.record,
            }
            for candidate in choice.candidates
        ],
        "attempts": [
            {"name": attempt.name, **_lost(attempt.loss), "floats": attempt.floats} for attempt in choice.attempts
        ],
        "sensitivity": choice.sensitivity,
        "warnings": choice.warnings,
    }
    return json.dumps(plain(record), indent=1, allow_nan=False) + "\n"


def _lost(loss: Loss) -> dict[str, object]:
    interval = None if loss.interval is None else (loss.interval.low, loss.interval.high)
    return {"drop": loss.drop, "interval": interval, "divergence": loss.divergence, "fault": loss.fault}
