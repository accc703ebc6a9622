"""Signals that end a command: once, so that it removes what it made; at once where it does not come to that."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from distill import scratch
from distill.errors import Exit

GRACE_S = 5.0
"""How long a command may take to end; CI systems kill what has not ended after 7 to 30 seconds."""

REMAINS: list[Path] = []
"""What an interrupted command leaves on purpose, for the same command to go on from."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command.

    A KeyboardInterrupt itself would have the interpreter end by SIGINT, although it was handled, where it passed
    through ``exec`` on its way, as in the making of a dataclass.
    """


@dataclass
class Interruption:
    """Which signal came, if any."""

    name: str = ""


@contextmanager
def interruptible(farewell: Callable[[str], str]) -> Iterator[Interruption]:
    """Turn the first signal that ends a command into Interrupted, wherever its main thread is.

    A second one, or a main thread that has not ended ``GRACE_S`` later (a library may call no Python for that long),
    ends the process at once, without its temporary folders; its children end with it. A signal that is ignored, as
    under nohup, stays ignored.

    Args:
        farewell: the line to end with, from the name of the signal.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield interruption
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        if not interruption.name:
            interruption.name = signal.Signals(number).name
            raise Interrupted

    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    numbers = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, numbers, farewell), daemon=True).start()
    try:
        for number in numbers:
            signal.signal(number, interrupt)
        yield interruption
    finally:
        for number in numbers:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(wakeup)
        os.close(writer)


def _watch(reader: int, numbers: list[int], farewell: Callable[[str], str]) -> None:
    """Wait for the first signal and then, no longer than the grace, for a second; the pipe is closed at the end."""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        first = _next(pipe, numbers)
        if first is None:
            return
        while select.select([pipe], [], [], GRACE_S)[0]:
            number = pipe.read(1)
            if not number:
                return
            if number[0] in numbers:
                break
    scratch.remove_all()
    with suppress(OSError, AttributeError):
        os.write(sys.__stderr__.fileno(), f"{farewell(signal.Signals(first).name)}\n".encode())  # type: ignore[union-attr]
    os._exit(Exit.INTERRUPTED)


def _next(pipe: Any, numbers: list[int]) -> int | None:
    """Read the numbers of signals until one comes that ends a command; None where the pipe is closed before."""
    while number := pipe.read(1):
        if number[0] in numbers:
            return int(number[0])
    return None
