"""What a training logs, and where it goes: `log.jsonl`, TensorBoard, and W&B and MLflow where the recipe asks.

    <folder>/log.jsonl        a line per write: {"step": ..., name: number, ...}; the report draws its curves from it
    <folder>/tensorboard/     the same, as event files
    <folder>/trackers.json    {tracker: run id}, so that a resumed training continues the runs it began
    <folder>/wandb/           what W&B keeps, all of it where its mode is offline

`log.jsonl` is the record; the others are copies. What goes wrong with a copy costs one line on the console.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import math
import os
import queue
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from raykd.recipe.load import flatten
from raykd.recipe.trackers import Mlflow, Tracker, Wandb
from raykd.run.files import put

LOG, TENSORBOARD, IDS = FILES = ("log.jsonl", "tensorboard", "trackers.json")  # in a training's folder
OPEN_SECONDS = 30  # how long W&B is asked for a run
CLOSE_SECONDS = 60  # how long the end of a training waits for what is not sent yet
MLFLOW_LETTERS = 6000  # of a parameter's value, at most
MLFLOW_PARAMS = 100  # at once, at most
NO_USAGE_STATS = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}  # read when they are imported
Numbers = Mapping[str, float]
Write = Callable[[int, Numbers], None]
Close = Callable[[bool], None]  # its argument: whether the training failed


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Log:
    """The open log of a training that begins, or goes on, at `step`; for its first worker alone.

    A training that goes on drops what it will write again. `settings` are shown beside the curves, as
    `section.field`. `warn` gets a line about each tracker that fails; it is called from threads.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        name: str,
        settings: dict[str, Any],
        trackers: Sequence[Tracker] = (),
        warn: Callable[[str], None] = _to_stderr,
    ):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG
        put(path, "".join(line + "\n" for line in _lines_until(path, step)).encode())
        self.file = open(path, "a", encoding="utf-8", buffering=1)
        os.environ.update(NO_USAGE_STATS)
        shown = flatten(settings) if settings else {}
        self.copies = [_Copy("tensorboard", partial(_tensorboard, folder, step, shown), warn)]
        self.copies += [_Copy(t.kind, partial(_connected, t, folder, name, shown), warn) for t in trackers]

    def __enter__(self) -> Log:
        return self

    def write(self, step: int, numbers: Numbers) -> None:
        """Append a line of numbers; one that is not finite is null in `log.jsonl`."""
        plain = {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        for copy in self.copies:
            copy.send(step, plain)

    def __exit__(self, error: Any, *_: Any) -> None:
        self.file.close()
        for copy in self.copies:
            copy.end(failed=error is not None)
        until = time.monotonic() + CLOSE_SECONDS
        for copy in self.copies:
            copy.wait(until)


class NoLog:
    """The log of a worker that is not the first: it writes nothing."""

    def __enter__(self) -> NoLog:
        return self

    def write(self, step: int, numbers: Numbers) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass


def _lines_until(path: Path, step: int) -> list[str]:
    """Lines of an earlier attempt that a training resumed at `step` keeps; none where it begins anew."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if step and path.exists() else []:
        try:
            lines += [line] if json.loads(line)["step"] <= step else []
        except ValueError:
            continue  # the line a kill cut short
    return lines


class _Copy:
    """A tracker in a thread of its own: the training neither waits for a network nor fails with it."""

    def __init__(self, kind: str, connect: Callable[[], tuple[Write, Close]], warn: Callable[[str], None]):
        self.kind, self.connect, self.warn = kind, connect, warn
        self.failed = False  # the training
        self.given_up = False  # after the one line about it
        self.waiting: queue.SimpleQueue[tuple[int, Numbers] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=f"log-{kind}", daemon=True)
        try:
            # here, because the training imports too, and two threads at it can see half a module
            importlib.import_module(PACKAGES[kind])
        except Exception as error:
            self._left_alone(error)
            return
        self.thread.start()

    def send(self, step: int, numbers: Numbers) -> None:
        if self.thread.is_alive():
            self.waiting.put((step, numbers))

    def end(self, failed: bool) -> None:
        self.failed = failed
        self.waiting.put(None)

    def wait(self, until: float) -> None:
        """Wait for what is not sent yet, no longer than `until` on the monotonic clock."""
        if self.thread.ident is not None:  # it was started
            self.thread.join(max(0.0, until - time.monotonic()))
        if self.thread.is_alive():
            self._give_up(f"not everything was sent in {CLOSE_SECONDS} s after the end, log.jsonl has it all")

    def _work(self) -> None:
        try:
            write, close = self.connect()
            for step, numbers in iter(self.waiting.get, None):
                write(step, numbers)
            close(self.failed)
        except Exception as error:  # each tracker has errors of its own, and none is the training's
            self._left_alone(error)

    def _left_alone(self, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self._give_up(f"nothing more is sent to it, log.jsonl goes on: {reason[:300]}")

    def _give_up(self, why: str) -> None:
        if not self.given_up:
            self.given_up = True
            self.warn(f"{self.kind}: {why}")


PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow.tracking"}


def _connected(tracker: Tracker, folder: Path, name: str, settings: dict[str, Any]) -> tuple[Write, Close]:
    if isinstance(tracker, Wandb):
        return _wandb(tracker, folder, name, settings)
    return _mlflow(tracker, folder, name, settings)


def _tensorboard(folder: Path, step: int, settings: dict[str, Any]) -> tuple[Write, Close]:
    """Event files; what those of an earlier attempt hold beyond `step` is marked as void."""
    from torch.utils.tensorboard import SummaryWriter

    events = folder / TENSORBOARD
    if not step:
        shutil.rmtree(events, ignore_errors=True)
    writer = SummaryWriter(str(events), purge_step=step + 1)
    if not step:
        writer.add_text("settings", _table(settings), 0)

    def write(step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # a kill must not cost what a checkpoint stands for

    return write, lambda failed: writer.close()


def _table(settings: dict[str, Any]) -> str:
    """Settings as a markdown table."""

    def safe(value: Any) -> str:
        return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")

    return "\n".join(
        ["| setting | value |", "| --- | --- |", *(f"| {safe(k)} | {safe(v)} |" for k, v in settings.items())]
    )


def _wandb(tracker: Wandb, folder: Path, name: str, settings: dict[str, Any]) -> tuple[Write, Close]:
    """A W&B run; it takes no step twice, so a resumed one keeps what the earlier attempt sent."""
    import wandb

    number = _run_id(folder, "wandb") or _keep_run_id(folder, "wandb", secrets.token_hex(6))
    run = wandb.init(
        project=tracker.project,
        entity=tracker.entity,
        mode=tracker.mode,
        id=number,
        resume="allow",
        name=name,
        dir=str(folder),
        config=settings,
        reinit="create_new",  # students may train side by side in one process
        settings=wandb.Settings(silent=True, console="off", init_timeout=OPEN_SECONDS, finish_timeout=CLOSE_SECONDS),
    )
    return (
        lambda step, numbers: run.log(dict(numbers), step=step),
        lambda failed: run.finish(exit_code=int(failed)),
    )


def _mlflow(tracker: Mlflow, folder: Path, name: str, settings: dict[str, Any]) -> tuple[Write, Close]:
    """An MLflow run; what a resumed one holds already is not sent again."""
    if tracker.tracking_uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow wants it said twice
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracker.tracking_uri)
    run = _run_id(folder, "mlflow")
    sent: dict[str, int] = {}  # the last step, by metric
    if run:
        client.update_run(run, status="RUNNING")
        for key in client.get_run(run).data.metrics:
            sent[key] = max(metric.step for metric in client.get_metric_history(run, key))
    else:
        with _one_at_a_time(tracker.tracking_uri):
            experiment = _mlflow_experiment(client, tracker.experiment)
        run = _keep_run_id(folder, "mlflow", client.create_run(experiment, run_name=name).info.run_id)
        params = [Param(key, str(value)[:MLFLOW_LETTERS]) for key, value in settings.items()]
        for start in range(0, len(params), MLFLOW_PARAMS):
            client.log_batch(run, params=params[start : start + MLFLOW_PARAMS])

    def write(step: int, numbers: Numbers) -> None:
        now = int(1000 * time.time())
        new = {key: value for key, value in numbers.items() if step > sent.get(key, -1)}
        client.log_batch(run, [Metric(key, value, now, step) for key, value in new.items()])

    return write, lambda failed: client.set_terminated(run, "FAILED" if failed else "FINISHED")


def _mlflow_experiment(client: Any, name: str) -> str:
    """The id of an experiment, which is created where there is none; students that begin at once may all try."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return experiment.experiment_id


@contextmanager
def _one_at_a_time(address: str) -> Iterator[None]:
    """A lock where MLflow keeps files: there, unlike on a server, two may make one experiment twice."""
    if not address.startswith("file:"):
        yield
        return
    folder = Path(url2pathname(urlsplit(address).path))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".raykd.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_ids = threading.Lock()  # of this process: a training's trackers begin at the same time


def _run_id(folder: Path, kind: str) -> str | None:
    """The run that this training began, or None.

    The id is kept, not derived from the folder's path: two people who share a project have the same paths, and a
    folder that was removed begins another run.
    """
    path = folder / IDS
    return json.loads(path.read_text(encoding="utf-8")).get(kind) if path.exists() else None


def _keep_run_id(folder: Path, kind: str, number: str) -> str:
    path = folder / IDS
    with _ids:
        run_ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        put(path, json.dumps({**run_ids, kind: number}).encode())
    return number
