"""What a benchmark found, as data: JSON in, JSON out, and everything that is needed to judge again.

Seconds, bytes and fractions throughout; words and units are for the exporters.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen
from typing_extensions import TypedDict

from distill.benchmarks.onnx_file.facts import Facts
from distill.benchmarks.timing.answers import sound_pairs
from distill.benchmarks.verdict.rule import Judgement, Verdict
from distill.bounds import AboveZero, Count, Natural, NotBelowZero, Share
from distill.documents import read_as, read_json
from distill.errors import NotComparableError, UserError
from distill.intervals import Estimate
from distill.output_paths import write_output

SCHEMA = 2
Mode = Literal["duet", "history", "incomparable", "identical", "none", "budget", "unread"]


@dataclass(frozen=True)
class Model:
    """A file and what one untimed call of it showed.

    `nodes` counts executed nodes by `Provider/Operator`; `integer_share` is that of integer kernels among the compute
    nodes. `provider` is the one that ran most of them, `asked` the one that was asked for. `peak_bytes` is the memory
    that opening and one call took, `load_s` a first opening in a fresh process, `runtime` the version of onnxruntime.
    """

    facts: Facts
    nodes: dict[str, Natural]
    integer_share: Share
    compute_nodes: Natural
    provider: str
    load_s: NotBelowZero
    peak_bytes: int | None
    finite: bool
    runtime: str = ""
    asked: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One file's latency: of calls as found (`p50_s`, and the tails that their count allows), and when it was quiet.

    `ratio` is its time over the first file's, from paired turns; above 1 it is slower. On a GPU inputs and outputs
    stay on the device, and `end_to_end_s` is with the copies.
    """

    p50_s: AboveZero
    quiet_s: AboveZero
    p90_s: AboveZero | None
    p99_s: AboveZero | None
    samples: Natural
    load_s: NotBelowZero
    end_to_end_s: AboveZero | None = None
    ratio: Estimate | None = None
    quiet_ratio: AboveZero | None = None


@dataclass(frozen=True)
class Case:
    """Files at one batch size and thread count. `pairs` are the session pairs as `runner.py` reported them.

    `arms` says which of the report's models each arm is; `joules` is the GPU's energy a call, all files together.
    """

    batch: Count
    threads: Count
    arms: tuple[Natural, ...]
    shapes: list[dict[str, list[Natural]]]
    rows: tuple[Row, ...]
    contended_share: Share
    seconds: NotBelowZero
    pairs: list[dict[str, Any]]
    joules: NotBelowZero | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """Something other than latency that was compared with the baseline."""

    name: str
    before: float
    after: float
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Before:
    """A baseline that was not measured this time, only stored.

    `medians` has the medians of its sessions in seconds for each of the report's cases, None where it lacks the case.
    """

    model: Model
    medians: tuple[tuple[AboveZero, ...] | None, ...]


@dataclass(frozen=True)
class Gate:
    """A gate: what was asked, what it is judged by beside the report's cases and models, and what came of it.

    `cases` has a judgement for each of the report's cases, None where there is none; `budgets` likewise for the p50
    budget. `reasons` say what led to the verdict. In the mode `unread` nothing could be judged, and the verdict is
    given. Of many gates that are judged together `family` is the number of comparisons, `first` the slow-down, as a
    ratio, that a first measurement found and this one was to confirm, and `rejected` says for which cases Holm's
    procedure over the whole family believes a slow-down.
    """

    name: str
    mode: Mode
    verdict: Verdict
    tolerance: AboveZero
    alpha: Annotated[float, Interval(gt=0, lt=1)]
    looks: Annotated[tuple[Annotated[int, Interval(ge=2, le=1000)], ...], MinLen(1)]
    max_p50_s: AboveZero | None = None
    max_size_growth: NotBelowZero | None = None
    before: Before | None = None
    cases: tuple[Judgement | None, ...] = ()
    budgets: tuple[Verdict | None, ...] = ()
    checks: tuple[Check, ...] = ()
    reasons: tuple[str, ...] = ()
    accepted: str | None = None
    family: Annotated[int, Interval(ge=1, le=1_000_000)] = 1
    first: AboveZero | None = None
    rejected: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Part:
    """Which part of a manifest a file of reports is: `number` of `count`, and the hash of the manifest's text."""

    number: Annotated[int, Interval(ge=1, le=1_000_000)]
    count: Annotated[int, Interval(ge=1, le=1_000_000)]
    manifest: str


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark found."""

    at: str
    machine: dict[str, Any]
    fingerprint: str
    target: dict[str, Any]
    seed: int
    models: tuple[Model, ...]
    cases: tuple[Case, ...]
    gates: tuple[Gate, ...] = ()
    warnings: tuple[str, ...] = ()
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Write the report as one JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a file that holds one report. Raises what `load_part` raises."""
        reports, _ = load_part(path)
        if len(reports) != 1:
            raise UserError(f"{path}: holds {len(reports)} reports, one was expected")
        return reports[0]


def to_json(reports: Sequence[Report], part: Part | None = None) -> str:
    """Write one report as itself; several, none, or a part of a manifest under `reports`."""
    if len(reports) == 1 and part is None:
        return reports[0].to_json()
    document: dict[str, Any] = {"schema": SCHEMA, "reports": [dataclasses.asdict(report) for report in reports]}
    if part is not None:
        document["part"] = dataclasses.asdict(part)
    return json.dumps(document, indent=1) + "\n"


def save_reports(path: Path, reports: Sequence[Report], part: Part | None = None) -> None:
    """Write reports whole or not at all. Raises what `write_output` raises."""
    write_output("", path, to_json(reports, part))


@contextmanager
def blaming(file: str) -> Iterator[None]:
    """Tell what goes wrong while stored measurements are read, judged and shown as the fault of their file.

    Raises:
        UserError: it was damaged, or written by somebody else; `file` says which, and what it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # such as the mean of no calls
            yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, Warning) as error:
        why = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise UserError(f"{file} ({' '.join(why.split())[:200]}); make it again") from error


def load_part(path: Path) -> tuple[list[Report], Part | None]:
    """Read what `save_reports` wrote, and which part of a manifest it is.

    Raises UserError where it is something else, NotComparableError for another schema.
    """
    try:
        raw = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not the JSON of a benchmark ({error})") from error
    if not isinstance(raw, dict) or "schema" not in raw or not ({"models", "cases"} <= raw.keys() or "reports" in raw):
        raise UserError(f"{path}: JSON, but not that of `python -m distill bench`")
    if raw["schema"] != SCHEMA:
        raise NotComparableError(
            f"{path}: its schema is {raw['schema']}, this version of distill reads {SCHEMA}; make it again with "
            "--save-baseline"
        )
    with blaming(f"{path}: a damaged benchmark"):
        part = read_as(Part, raw["part"], place="part") if "part" in raw else None
        return [report_of(report) for report in raw.get("reports", [raw])], part


class _Threads(TypedDict):
    usable: Natural
    affinity: Natural
    cgroup: NotBelowZero | None


class _Machine(TypedDict):
    """What `timing.machine.machine` says."""

    family: str
    cpu: str
    flags: list[str] | None
    threads: _Threads
    system: str
    kernel: str
    gpus: list[dict[str, str | int]]
    versions: dict[str, str | None]


class _Target(TypedDict):
    """What `Options.record` says."""

    name: str
    provider: str
    provider_options: dict[str, str]
    measure: str | None


def report_of(raw: Mapping[str, Any]) -> Report:
    """Make a report of its JSON values: every field of its type and in its bounds, its parts as many as one another.

    Raises:
        ValueError: it is damaged, or was made up.
    """
    report = read_as(Report, raw)
    read_as(_Machine, report.machine, place="machine"), read_as(_Target, report.target, place="target")
    for number, case in enumerate(report.cases):
        arms = len(case.arms)
        if not arms == len(case.rows) == len(case.shapes) or not all(arm < len(report.models) for arm in case.arms):
            raise ValueError(f"cases.{number}: its rows are not those of its files")
        sound_pairs(case.pairs, arms, place=f"cases.{number}.pairs")
    for number, gate in enumerate(report.gates):
        if any(len(each) not in (0, len(report.cases)) for each in (gate.cases, gate.budgets, gate.rejected)):
            raise ValueError(f"gates.{number}: has verdicts on other cases")
        if gate.before is not None and len(gate.before.medians) != len(report.cases):
            raise ValueError(f"gates.{number}.before: is a baseline of other cases")
    return report
