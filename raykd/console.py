"""What the user sees while a run goes on: one line per event, and bars with rate and time left."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class Console:
    """The user's terminal. On a terminal, live bars; in a log file, a line per bar every `every` seconds."""

    def __init__(self, verbose: bool = False, every: float = 15.0):
        self.verbose, self.every = verbose, every
        self.out: IO[str] = sys.stdout
        self.begun = time.monotonic()
        self.lock = threading.Lock()
        self.progress = None
        self.bars = 0

    @contextmanager
    def quiet(self, chatter: Path):
        """What libraries print goes to a file while the block runs, unless the user asked to see it."""
        if self.verbose:
            yield
            return
        chatter.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(1), os.dup(2)]
        with open(chatter, "ab") as file, os.fdopen(os.dup(1), "w", buffering=1) as self.out:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, old in enumerate(kept, 1):
                    os.dup2(old, number)
                    os.close(old)
                self.out = sys.stdout

    def say(self, text: str) -> None:
        """One line, with the minutes and seconds since the start before it."""
        line = f"[{_clock(time.monotonic() - self.begun)}] {text}"
        with self.lock:
            if self.progress is not None:
                self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, flush=True, file=self.out)

    @contextmanager
    def bar(self, name: str, total: int | None, unit: str):
        """A bar of `total` units, or of a number that nobody knows yet.

        Yields `update(done, note="")`, which may be called from any thread.
        """
        if self.out.isatty():
            with self._live() as progress:
                task = progress.add_task(name, total=total, unit=unit, note="")
                yield lambda done, note="": progress.update(task, completed=done, note=note)
                progress.remove_task(task)
        else:
            yield self._lines(name, total, unit)

    @contextmanager
    def _live(self):
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

        with self.lock:
            if self.progress is None:
                columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate()]
                columns += [TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
                self.progress = Progress(*columns, console=Console(file=self.out))
                self.progress.start()
            self.bars += 1
            progress = self.progress
        try:
            yield progress
        finally:
            with self.lock:
                self.bars -= 1
                if not self.bars:
                    progress.stop()
                    self.progress = None

    def _lines(self, name: str, total: int | None, unit: str):
        begun, first, shown = 0.0, -1, 0.0

        def update(done: int, note: str = "") -> None:
            nonlocal begun, first, shown
            now = time.monotonic()
            if first < 0:  # what came before this, starting up or an earlier run, is not its rate
                begun, first = now, done
            if now - shown < self.every or now - begun < 1:  # a rate over less than a second says nothing
                return
            shown = now
            rate = (done - first) / (now - begun)
            said = [
                f"{name}: {done} {unit}" if total is None else f"{name}: {done}/{total} {unit}",
                f"{rate:.1f} {unit}/s",
            ]
            if total is not None:
                said.append(f"{_clock((total - done) / rate) if rate else '?'} left")
            self.say(", ".join([*said, note] if note else said))

        return update


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
