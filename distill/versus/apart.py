"""A step of a campaign in a process of its own: one that crashes, hangs or grows is a result like any other."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a step may take: seconds, and bytes of memory of its own."""

    seconds: float = 300
    memory_bytes: int = 10 * 2**30


def prepare(modules: Sequence[str]) -> None:
    """Have modules loaded once, before any step: later changes of their files change no step, nor does loading slow it.

    Does nothing once a step has run.
    """
    _CONTEXT.set_forkserver_preload([__name__, *modules])


def apart(step: Callable[[], Result], limits: Limits) -> Result:
    """Run a step in a fresh process and return its result; a process that dies or takes too long is one, too.

    Processes are forked from one that has torch loaded already and has done nothing else.
    """
    with tempfile.TemporaryDirectory(prefix="distill-step-") as place:
        answer = Path(place, "answer.json")
        process = _CONTEXT.Process(target=_in_child, args=(step, answer, limits))
        process.start()
        try:
            process.join(limits.seconds)
        finally:
            late = process.is_alive()
            process.kill()
            process.join()
        if late:
            return {"at": "limit", "why": f"took more than {limits.seconds:g} s", "seconds": limits.seconds}
        if answer.exists():
            found: Result = json.loads(answer.read_text(encoding="utf-8"))
            return found
        return {"at": "crash", "why": f"the process died with code {process.exitcode}"}


def _in_child(step: Callable[[], Result], answer: Path, limits: Limits) -> None:
    import torch

    # The second is for a process that nobody waits for any more.
    for kind, most in ((resource.RLIMIT_DATA, limits.memory_bytes), (resource.RLIMIT_CPU, int(limits.seconds) + 60)):
        resource.setrlimit(kind, (most, most))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            found = step()
    except Exception as error:  # of a step that says nothing about its own errors
        found = {"at": "load", "why": f"{type(error).__name__}: {error}"}
    whole = answer.with_suffix(".part")
    whole.write_text(json.dumps(found), encoding="utf-8")
    whole.rename(answer)
