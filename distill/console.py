"""What a run says while it works: bars with the time left for people, a line a stage in a log, nothing for machines."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from distill import clean

Mode = Literal["auto", "quiet"]
LOG_EVERY_S = 60.0


class Console:
    """Progress and messages on standard error, so that standard output holds results only.

    Bars appear on a terminal; elsewhere (a log, a CI job) a step is one line when it begins, one when it ends, and one
    a minute between.
    """

    def __init__(self, mode: Mode = "auto") -> None:
        self._rich = clean.console(stderr=True, quiet=mode == "quiet")
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Console:
        if self._rich.is_terminal and not self._rich.quiet:
            self._bars = Progress(
                TextColumn("{task.description:<28}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._rich,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def say(self, text: str) -> None:
        """Print one line."""
        self._rich.print(clean.log_line(text), soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far a step is; the form that every long loop of the product calls."""
        if self._bars is None:
            self._log(what, done, total)
            return
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(clean.log_line(what), total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            # Steps come again: each time with a bar and a clock of its own.
            self._bars.remove_task(self._tasks.pop(what))

    def _log(self, what: str, done: int, total: int) -> None:
        """Print when a step begins and ends, and once a minute between."""
        now = time.monotonic()
        if what not in self._begun:
            self._begun[what] = self._said[what] = now
            self.say(f"  {what} …")
        begun = self._begun[what]
        if done >= total:
            self.say(f"  {what}: {now - begun:.1f} s")
            del self._begun[what]
        elif done and now - self._said[what] >= LOG_EVERY_S:
            self._said[what] = now
            left = (now - begun) * (total - done) / done
            self.say(f"  {what}: {100 * done // total} %, {left / 60:.0f} min left")
