"""The verb `bench`: from the words of the command line to measurements, and from those to what is written."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distill import clean
from distill.benchmarks import runner
from distill.benchmarks.parse import counts, fraction, named_values, positive, read_npz, sizes
from distill.benchmarks.records import DAMAGED, Part, Report, load_part, said_of, save_reports, to_json
from distill.benchmarks.show.annotations import workflow_commands
from distill.benchmarks.show.junit import junit
from distill.benchmarks.show.markdown import summary
from distill.benchmarks.target import Target, resolve_target, target_of_provider
from distill.benchmarks.timing.jobs import Timing
from distill.benchmarks.verdict import boards, manifest
from distill.benchmarks.verdict.baseline import read_accepted, require_own_place, save_baseline
from distill.benchmarks.verdict.bench import Options, bench
from distill.benchmarks.verdict.gate import Ask, by_budget, outcome
from distill.benchmarks.verdict.judging import accept, rejudge
from distill.benchmarks.verdict.outcomes import exit_code
from distill.benchmarks.verdict.rule import Rule
from distill.errors import Exit, UserError
from distill.places import require_apart, require_places, write_output

_TOLERANCE = "5%"


@dataclass(frozen=True, kw_only=True)
class Words:
    """What was said on the command line, as it was said."""

    models: tuple[str, ...] = ()
    batch: str = "1"
    threads: str = "1"
    dim: tuple[str, ...] = ()
    inputs: Path | None = None
    target: str | None = None
    provider: str | None = None
    provider_option: tuple[str, ...] = ()
    pairs: int = 6
    seconds: float = 1.0
    seed: int = 0
    timeout: float | None = None
    baseline: Path | None = None
    save_baseline: Path | None = None
    release_baseline: Path | None = None
    max_regression: str | None = None
    max_p50_ms: float | None = None
    max_size_growth: str | None = None
    accept: Path | None = None
    strict: bool = False
    if_incomparable: str = "fail"
    baseline_python: Path | None = None
    time_identical: bool = False
    manifest: Path | None = None
    shard: str | None = None
    merge: tuple[Path, ...] = ()
    measure: str | None = None
    export_runner: Path | None = None
    import_: tuple[Path, ...] = ()
    rejudge: Path | None = None
    out: Path | None = None
    junit: Path | None = None
    summary: Path | None = None
    as_json: bool = False


def run(words: Words) -> Exit:
    """Do what was asked for; returns the exit code.

    Raises UserError, NotComparableError and NotMeasuredError, whose messages name the option or the file.
    """
    task = _task(words)
    _require_writable(words)
    if task == "export":
        place, baseline = words.export_runner, words.baseline
        assert place is not None
        boards.export(place, words.models, _options(words), _ask(words), baseline)
        print(clean.log_line(f"wrote {place}; there, `python3 runner.py` writes result.json, which --import reads"))
        return Exit.OK
    with _stored(words):
        reports, part = _reports(task, words)
        warn = words.if_incomparable == "warn"
        code = exit_code([one for report in reports for one in report.gates], strict=words.strict, incomparable_ok=warn)
        _tell(words, reports, part)
    if words.save_baseline is not None:
        _keep(words, reports)
    return code


@contextmanager
def _stored(words: Words) -> Iterator[None]:
    """Tell what goes wrong with stored measurements as their fault: they are shown and judged, nothing else is done.

    Raises:
        UserError: a file of them holds something else than what was measured.
    """
    paths = [path for path in (words.rejudge, *words.merge, *words.import_) if path is not None]
    if not paths:
        yield
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # such as the mean of no calls
            yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, Warning) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{', '.join(map(str, paths))}: a damaged benchmark ({why}); make it again") from error


_INPUTS = ("batch", "threads", "dim", "inputs")
_MEASURING = (*_INPUTS, "target", "provider", "provider_option", "seconds", "seed", "timeout")
_LIMITS = ("max_regression", "max_p50_ms", "max_size_growth")
_VERDICT = ("strict", "if_incomparable", "out", "junit", "summary", "as_json")
# What every task takes; whatever else was said would be ignored, and is refused.
_TAKES: dict[str, tuple[str, ...]] = {
    "measure": ("models", *_MEASURING, "pairs", "measure", "save_baseline", "max_p50_ms", *_VERDICT),
    "gate": (
        *("models", "baseline", "release_baseline", "save_baseline", "accept", "baseline_python", "time_identical"),
        *("measure", "pairs", *_MEASURING, *_LIMITS, *_VERDICT),
    ),
    "manifest": ("manifest", "shard", "pairs", "accept", "time_identical", "measure", *_MEASURING, *_LIMITS, *_VERDICT),
    "merge": ("merge", *_VERDICT),
    "import": ("import_", "accept", *_LIMITS, *_VERDICT),
    "rejudge": ("rejudge", "accept", *_LIMITS, *_VERDICT),
    "export": ("models", "baseline", "export_runner", "pairs", *_MEASURING, *_LIMITS),
}
# How a task is asked for, as it stands in messages.
_FLAGS = {
    "measure": "MODEL alone",
    "gate": "--baseline",
    "manifest": "--manifest",
    "merge": "--merge",
    "import": "--import",
    "rejudge": "--rejudge",
    "export": "--export-runner",
}


def _task(words: Words) -> str:
    """Tell what is asked for. Raises UserError for words that ask for nothing, or do not go together."""
    sources = {
        "MODEL": bool(words.models),
        "--manifest": words.manifest is not None,
        "--merge": bool(words.merge),
        "--import": bool(words.import_),
        "--rejudge": words.rejudge is not None,
    }
    asked = [name for name, there in sources.items() if there]
    if len(asked) != 1:
        found = " and ".join(asked) if asked else "none"
        raise UserError(f"bench: give one of {', '.join(sources)}; {found} was given")
    task = asked[0].removeprefix("--")
    if task == "MODEL":
        gated = words.baseline is not None or words.release_baseline is not None
        task = "export" if words.export_runner is not None else "gate" if gated else "measure"
    _require_fitting(task, asked[0], words)
    return task


def _require_fitting(task: str, source: str, words: Words) -> None:
    """Refuse words that the task would ignore, and values that do not go together."""
    plain = Words()
    said = [one.name for one in dataclasses.fields(Words) if getattr(words, one.name) != getattr(plain, one.name)]
    mistakes = []
    for name in said:
        if name not in _TAKES[task]:
            fitting = " or ".join(flag for one, flag in _FLAGS.items() if name in _TAKES[one])
            beside = source if task == "measure" else _FLAGS[task]
            mistakes.append(f"{_option(name)}: would be ignored beside {beside}; it goes with {fitting}")
    if mistakes:
        raise UserError("\n".join(mistakes))
    single = {
        "--baseline": task == "gate" or (task == "export" and words.baseline is not None),
        "--save-baseline": words.save_baseline is not None,
        "--max-p50-ms": words.max_p50_ms is not None,
    }
    for option, needed in single.items():
        if words.models and needed and len(words.models) != 1:
            raise UserError(f"{option}: goes with one MODEL, {len(words.models)} were given; --manifest gates many")
    if words.baseline_python is not None and (words.measure is not None or words.baseline is None):
        raise UserError("--baseline-python: goes with --baseline, and not with --measure, which uses another machine's")
    if words.if_incomparable not in ("fail", "warn"):
        raise UserError(f"--if-incomparable {words.if_incomparable}: must be fail or warn")
    if task == "measure" and words.strict and words.max_p50_ms is None:
        raise UserError("--strict: there is nothing to judge without --baseline or --max-p50-ms")


def _option(name: str) -> str:
    special = {"models": "MODEL", "as_json": "--json", "import_": "--import"}
    return special.get(name, f"--{name.replace('_', '-')}")


def _require_writable(words: Words) -> None:
    """Find out before a measurement whether its results can be kept, and make the folders that they go into.

    Raises:
        UserError: a path is a folder, its folder is a file, it cannot be written, is named twice, or is read.
    """
    said = {
        "--out": words.out,
        "--junit": words.junit,
        "--summary": _summary(words),
        "--save-baseline": words.save_baseline,
    }
    outputs = {option: path for option, path in said.items() if path is not None}
    for option, path in outputs.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{option} {path}: its folder cannot be made ({error.strerror})") from error
    if words.save_baseline is not None:
        require_own_place(words.save_baseline, Path(words.models[0]))
        outputs["the model of --save-baseline"] = words.save_baseline.with_suffix(".onnx")
    require_places(outputs)
    read = {"--inputs": words.inputs, "--manifest": words.manifest, "--accept": words.accept}
    read |= {"--baseline": words.baseline, "--release-baseline": words.release_baseline}
    inputs = [("the model itself", Path(name)) for name in words.models]
    inputs += [(f"what {option} reads", path) for option, path in read.items() if path is not None]
    # A baseline takes the place of the one that it is compared with.
    require_apart({option: path for option, path in outputs.items() if "--save-baseline" not in option}, inputs)


def _summary(words: Words) -> Path | None:
    """Return where a Markdown summary is appended: the place that was named, or GitHub's."""
    step = os.environ.get("GITHUB_STEP_SUMMARY")
    return words.summary or (Path(step) if step else None)


def _reports(task: str, words: Words) -> tuple[list[Report], Part | None]:
    """Measure, or read what was measured."""
    accepted = {} if words.accept is None else read_accepted(words.accept)
    if task == "rejudge":
        assert words.rejudge is not None
        stored, part = load_part(words.rejudge)
        if not any(report.gates for report in stored) and words.max_p50_ms is None:
            raise UserError(f"--rejudge {words.rejudge}: holds no gate, so there is nothing to judge again")
        if words.max_regression is None:
            stored = [_with_remark(one, words.rejudge) for one in stored]
        return _again(task, stored, words, accepted), part
    if task == "merge":
        return manifest.merged(words.merge), None
    if task == "import":
        return _again(task, [boards.brought_home(path) for path in words.import_], words, accepted), None
    options, ask = _options(words), _ask(words, accepted)
    if task == "manifest":
        assert words.manifest is not None
        whole = manifest.read(words.manifest, options, ask)
        mine = manifest.part(whole, words.shard)
        return manifest.run(whole, mine, say=lambda text: print(clean.log_line(text), file=sys.stderr)), mine
    if task == "measure":
        made = bench(words.models, options)
        name = Path(words.models[0]).name
        return [made if ask.max_p50_s is None else by_budget(made, ask, f"{name} by its budget")], None
    reports = []
    for path in (words.baseline, words.release_baseline):
        if path is not None:
            name = f"{Path(words.models[0]).name} against {path.name}"
            mine_only = options if path is words.baseline else dataclasses.replace(options, commands={})
            reports.append(accept(outcome(words.models[0], path, mine_only, ask, name=name), accepted))
    return reports, None


def _again(task: str, stored: Sequence[Report], words: Words, accepted: Mapping[str, str]) -> list[Report]:
    """Judge what was measured before: by the limits that are given now, and by those of then where none is."""
    changed: dict[str, object] = {}
    if words.max_regression is not None:
        changed["tolerance"] = fraction("--max-regression", words.max_regression)
    if words.max_p50_ms is not None:
        changed["max_p50_s"] = positive("--max-p50-ms", words.max_p50_ms) / 1000
    if words.max_size_growth is not None:
        changed["max_size_growth"] = fraction("--max-size-growth", words.max_size_growth, zero=True)
    limits = {"--max-regression": words.max_regression, "--max-size-growth": words.max_size_growth}
    said = [option for option, value in limits.items() if value is not None]
    reports = []
    for one in stored:
        made = one
        if said and not one.gates:
            name = one.models[-1].facts.name if one.models else "it"
            raise UserError(f"{said[0]}: {name} was measured without a baseline, so there is nothing to judge by it")
        if not one.gates and words.max_p50_ms is not None:
            made = by_budget(one, _ask(words, {}), f"{one.models[-1].facts.name} by its budget")
        try:
            reports.append(rejudge(made, **changed))
        except DAMAGED as error:
            raise UserError(f"{_FLAGS[task]}: a damaged report ({said_of(error)}); make it again") from error
    return [accept(one, accepted) for one in manifest.corrected_for_family(reports)]


def _with_remark(stored: Report, path: Path) -> Report:
    """Say where a stored report is judged more leniently than a gate is by default, which only the file says."""
    found = [
        f"{path} itself allows {gate.name} a slow-down of {100 * gate.tolerance:g} %; say --max-regression for yours"
        for gate in stored.gates
        if gate.tolerance > Rule().tolerance
    ]
    return dataclasses.replace(stored, warnings=tuple(dict.fromkeys((*stored.warnings, *found))))


def _options(words: Words) -> Options:
    target = _target(words)
    commands = {}
    if words.baseline_python is not None:
        if not words.baseline_python.exists():
            raise UserError(f"--baseline-python {words.baseline_python}: does not exist")
        commands = {0: (str(words.baseline_python), str(Path(runner.__file__).resolve()), "--serve")}
    return Options(
        target=target,
        batches=counts("--batch", words.batch),
        threads=counts("--threads", words.threads),
        timing=Timing(pairs=words.pairs, seconds_per_pair=words.seconds, seed=words.seed, timeout_s=words.timeout),
        dims=sizes("--dim", words.dim),
        rows=read_npz(words.inputs) if words.inputs is not None else {},
        commands=commands,
    )


def _target(words: Words) -> Target:
    options = named_values("--provider-option", words.provider_option)
    if words.provider is not None and words.target is not None:
        raise UserError("--provider: give it or --target, not both")
    made = target_of_provider(words.provider) if words.provider is not None else resolve_target(words.target)
    return dataclasses.replace(made, measure=words.measure, options=tuple(options.items()))


def _ask(words: Words, accepted: Mapping[str, str] | None = None) -> Ask:
    growth, p50 = words.max_size_growth, words.max_p50_ms
    return Ask(
        rule=Rule(tolerance=fraction("--max-regression", words.max_regression or _TOLERANCE)),
        max_size_growth=None if growth is None else fraction("--max-size-growth", growth, zero=True),
        max_p50_s=None if p50 is None else positive("--max-p50-ms", p50) / 1000,
        accepted=accepted or {},
        time_identical=words.time_identical,
    )


def _keep(words: Words, reports: Sequence[Report]) -> None:
    """Keep the measurement as a baseline, unless a verdict speaks against it or there is none."""
    place = words.save_baseline
    assert place is not None
    gates = [one for report in reports for one in report.gates]
    bad = {"fail", "not measured", "inconclusive"} | ({"incomparable"} if words.if_incomparable == "fail" else set())
    against = sorted({one.verdict for one in gates} & bad)
    same = any(one.mode == "identical" for one in gates) and place.exists()
    if against or same or not reports[0].cases:
        why = f"since the verdict is {' and '.join(against)}" if against else "as the file is the baseline's own"
        print(clean.log_line(f"--save-baseline {place}: left as it was, {why}"), file=sys.stderr)
        return
    save_baseline(place, reports[0], Path(words.models[0]))
    print(clean.log_line(f"--save-baseline {place}: kept"), file=sys.stderr)


def _tell(words: Words, reports: Sequence[Report], part: Part | None) -> None:
    """Print and write what was found, in every form that was asked for."""
    if words.out is not None:
        save_reports(words.out, reports, part)
    if words.junit is not None:
        write_output("--junit", words.junit, junit(reports))
    place = _summary(words)
    if place is not None:
        with place.open("a", encoding="utf-8") as file:
            file.write("\n".join(summary(one) for one in reports))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # On standard error when JSON goes to standard output: GitHub reads both.
        for line in workflow_commands(reports):
            print(line, file=sys.stderr if words.as_json else sys.stdout)
    if words.as_json:
        sys.stdout.write(clean.json_text(to_json(reports, part)))
        return
    from distill.benchmarks.show.terminal import render

    console = clean.console()
    for one in reports:
        console.print(render(one, console.width))
