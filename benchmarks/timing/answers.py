"""What `runner.py` answers, as types: what comes from elsewhere is read by them before anything is calculated with it.

Keys that are not named here are left out: the runner of a board may be of another version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import AfterValidator, ConfigDict, with_config
from typing_extensions import TypedDict

from distill.benchmarks import runner
from distill.bounds import AboveZero, Natural, NotBelowZero
from distill.documents import Json, read_as

Turn = tuple[Natural, AboveZero, Natural, Natural, AboveZero]
"""Arm, median call in seconds, calls, those that nothing disturbed, fastest call in seconds."""


def _whole(bin_: str) -> str:
    if not re.fullmatch(r"-?\d{1,9}", bin_):
        raise ValueError(f"{bin_[:40]!r} is no bin of times")
    return bin_


def _whole_turns(turns: list[Turn]) -> list[Turn]:
    for number, turn in enumerate(turns):
        if turn[3] > turn[2]:
            raise ValueError(f"turn {number} has {turn[2]} calls, of which {turn[3]} were undisturbed")
    return turns


@with_config(ConfigDict(extra="ignore", strict=True))
class SessionPair(TypedDict):
    """What was measured of all arms in one pair of sessions; lists by arm are in the order of the job."""

    first: Natural
    load_s: list[NotBelowZero]
    finite: list[bool]
    end_to_end_s: list[AboveZero]
    calls: list[dict[Annotated[str, AfterValidator(_whole)], Natural]]
    first_s: NotBelowZero
    warm_s: NotBelowZero
    settled: bool
    turns: Annotated[list[Turn], MinLen(1), AfterValidator(_whole_turns)]
    throttled: Annotated[list[bool], MinLen(1)]
    clock_mhz: NotBelowZero | None
    energy_j: NotBelowZero | None


@with_config(ConfigDict(extra="ignore", strict=True))
class Board(TypedDict):
    """The machine that the runner ran on."""

    machine: str
    cpu: str
    flags: list[str]
    cores: Annotated[Natural, AfterValidator(lambda cores: max(1, cores))]
    system: str
    kernel: str
    python: str
    numpy: str
    onnxruntime: str


@with_config(ConfigDict(extra="ignore", strict=True))
class _Finite(TypedDict):
    finite: bool


@with_config(ConfigDict(extra="ignore", strict=True))
class Inspection(TypedDict):
    """What one untimed call of a file showed; `nodes` are [name, operator, provider, shapes of its inputs]."""

    load_s: NotBelowZero
    peak_bytes: int | None
    outputs: dict[str, _Finite]
    nodes: list[tuple[str, str, str, list[list[int]]]]


@with_config(ConfigDict(extra="ignore", strict=True))
class Timed(TypedDict):
    """The session pairs of a job."""

    pairs: list[SessionPair]
    seconds: NotBelowZero


def sound_pairs(pairs: Sequence[Mapping[str, Any]], arms: int, *, place: str = "pairs") -> list[Json]:
    """Return session pairs of so many arms, once every field of theirs is one that a clock can have measured.

    `place` is what messages call them.

    Raises:
        ValueError: a field is missing, of another type or out of its bounds, or the arms are others.
    """
    sound: list[Json] = read_as(list[SessionPair], pairs, place=place)
    if len(sound) < 2:
        raise ValueError(f"{place}: {len(sound)} session pairs, where two are the least")
    for number, pair in enumerate(sound):
        counts = {len(pair[key]) for key in ("load_s", "finite", "calls")} | {len(pair["end_to_end_s"]) or arms}
        if counts != {arms} or {turn[0] for turn in pair["turns"]} != set(range(arms)):
            raise ValueError(f"{place}.{number}: measured of other files than the {arms} of the job")
        if not 0 < len(pair["throttled"]) * max(2, arms) <= len(pair["turns"]):
            raise ValueError(f"{place}.{number}.turns: fewer than `throttled` has half rounds")
        runner.effect(pair, arms, arms - 1)  # which looks at how the turns are paired
    return sound


def sound_answer(job: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Json]:
    """Return what a runner answered to a job, once it is an answer to such a job.

    Raises:
        ValueError: as `sound_pairs` raises it, for the machine and an inspection too.
    """
    sound = dict(answer)
    if "board" in answer:
        sound["board"] = read_as(Board, answer["board"], place="board")
    if job["task"] == "time":
        timed: Json = read_as(Timed, {key: value for key, value in answer.items() if key != "pairs"} | {"pairs": []})
        sound |= timed | {"pairs": sound_pairs(answer["pairs"], len(job["arms"]))}
    elif job["task"] == "inspect":
        sound |= read_as(Inspection, answer)
    return sound
