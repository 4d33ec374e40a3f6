"""What the user sees while a run goes on: a line per event, and progress bars with rate and time left."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Console:
    """Terminal output: live bars on a terminal; in a log file a line per bar, every `every` seconds.

    May be used from several threads at once. `out` is where it writes: standard output, unless it is set. With
    `verbose`, what libraries print is shown too.
    """

    def __init__(self, verbose: bool = False, every: float = 15.0):
        self.verbose, self.every = verbose, every
        self.out: IO[str] = sys.stdout
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._progress: Progress | None = None  # what draws the bars, while there are any
        self._bars = 0

    @contextmanager
    def quiet(self, log: Path) -> Iterator[None]:
        """While the block runs, append to a file what libraries print, unless the console is verbose.

        Standard output and error of the whole process are redirected, also of code that is not Python.
        """
        if self.verbose:
            yield
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [os.dup(1), os.dup(2)]
        with open(log, "ab") as file, os.fdopen(os.dup(1), "w", buffering=1) as self.out:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, descriptor in enumerate(saved, 1):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                self.out = sys.stdout

    def say(self, text: str) -> None:
        """Print a line, after the minutes and seconds since the console was made."""
        line = f"[{_clock(time.monotonic() - self._started)}] {text}"
        with self._lock:
            if self._progress is not None:
                self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, flush=True, file=self.out)

    @contextmanager
    def bar(self, name: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
        """A progress bar, shown while the block runs. `total` is in units; None where it is not known.

        Yields `update(done, note="")`, which may be called from any thread; `done` is in units, since the start.
        """
        if self.out.isatty():
            with self._live() as progress:
                task = progress.add_task(name, total=total, unit=unit, note="")
                yield lambda done, note="": progress.update(task, completed=done, note=note)
                progress.remove_task(task)
        else:
            yield self._lines(name, total, unit)

    @contextmanager
    def _live(self) -> Iterator[Progress]:
        """The bars of a terminal, drawn by one `Progress` for all that are shown at the same time."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task):
                return Text(f"{task.speed or 0:.1f} {task.fields['unit']}/s")

        with self._lock:
            if self._progress is None:
                columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate()]
                columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
                self._progress = Progress(*columns, console=Console(file=self.out))
                self._progress.start()
            self._bars += 1
            progress = self._progress
        try:
            yield progress
        finally:
            with self._lock:
                self._bars -= 1
                if not self._bars:
                    progress.stop()
                    self._progress = None

    def _lines(self, name: str, total: int | None, unit: str) -> Callable[..., None]:
        """A bar's `update` for a log file: a line now and then."""
        started, first, shown = 0.0, -1, 0.0  # the time and `done` of the first call; the time of the last line

        def update(done: int, note: str = "") -> None:
            nonlocal started, first, shown
            now = time.monotonic()
            if first < 0:  # rows of an earlier run, and the time to start up, do not count for the rate
                started, first = now, done
            if now - shown < self.every or now - started < 1:  # a rate over less than a second says nothing
                return
            shown = now
            rate = (done - first) / (now - started)
            parts = [
                f"{name}: {done} {unit}" if total is None else f"{name}: {done}/{total} {unit}",
                f"{rate:.1f} {unit}/s",
            ]
            if total is not None:
                parts.append(f"{_clock((total - done) / rate) if rate else '?'} left")
            self.say(", ".join([*parts, note] if note else parts))

        return update


def _clock(seconds: float) -> str:
    """Minutes and seconds, as 07:05."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
