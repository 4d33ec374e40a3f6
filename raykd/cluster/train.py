"""Train on Ray Train: one TorchTrainer per model, several at the same time where they fit."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from fsspec.core import url_to_fs
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import train as ray_train
from ray.train.torch import TorchConfig, TorchTrainer

from raykd.cluster import counters, resources, score
from raykd.errors import RaykdError, RunError, TrainingError
from raykd.recipe.cluster import Cluster
from raykd.run import remote
from raykd.run.files import fingerprint, write_json
from raykd.training.trackers import FILES, LOG

if TYPE_CHECKING:
    from raykd.training.job import TrainingSpec

ERROR = "error.txt"  # in a training's folder: why one of its workers gave up
BEST = "best.json"  # in a training's folder at a URL: {step}, whose model is there; gone while another is sent
POLL, REMOTE_POLL = 1.0, 10.0  # seconds between looks at a training's log, for the bars


def _worker(config: dict) -> dict:
    """The body of a Ray Train worker."""

    def report(metrics: dict, folder: Path) -> None:
        if first and remote.url(job.folder):
            with suppress(RunError):  # then the model is made again from the checkpoint
                _send(Path(job.folder), best_step(folder))
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(str(folder)))

    from raykd.training.checkpoints import best_step
    from raykd.training.job import needed_files
    from raykd.training.loop import train  # here, so that Ray's own processes need not load torch and transformers

    job = config["job"]
    first = ray_train.get_context().get_world_rank() == 0
    said = Path(job.folder) / ERROR
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    there = remote.fetch(said, *needed_files(job), *([job.folder] if first else []))
    if remote.url(said) and said not in there:
        said.unlink(missing_ok=True)
    if said.exists():  # of the workers before these
        return {"error": said.read_text()}
    held = ray_train.get_checkpoint()
    try:
        with held.as_directory() if held else nullcontext() as folder:
            if folder and first and remote.url(job.folder):
                _trusted(Path(job.folder), best_step(Path(folder)))
            result = train(job, report, Path(folder) if folder else None, config["scorer"])
        if first:
            remote.send(job.folder)
        return result
    except RaykdError as error:  # not a lost worker: trying again would end the same way
        if ray_train.get_context().get_world_size() == 1:
            return {"error": str(error)}
        said.write_text(str(error))
        remote.send(said)
        raise  # which ends the other workers, who may be waiting for this one


def _send(folder: Path, best_step: int) -> None:
    """Send what a training has so far; a model that is half sent is never taken for a whole one."""
    best = folder / BEST
    if not best.exists() or json.loads(best.read_text())["step"] != best_step:
        remote.remove(best)
        remote.send(folder / "model")
        write_json(best, {"step": best_step})
    remote.send(*(folder / name for name in (*FILES, BEST)))


def _trusted(folder: Path, best_step: int) -> None:
    """Take away a model that is not the one of a checkpoint's best step."""
    best = remote.tail(folder / BEST, 0)
    if best is None or json.loads(best)["step"] != best_step:
        shutil.rmtree(folder / "model", ignore_errors=True)
        (folder / BEST).unlink(missing_ok=True)


def together(count: int, cluster: Cluster) -> tuple[int, int]:
    """How many of `count` trainings run at the same time, and the CPU threads of each of their workers."""
    workers, (least, most) = cluster.student, cluster.student.bounds()
    at_once = min(count, resources.at_once(workers.resources, least, cluster))
    return at_once, resources.threads(workers.threads, at_once * most)


def fit(
    job: TrainingSpec, cluster: Cluster, progress: Callable[[int, str], None], callbacks: Sequence[Any] = ()
) -> dict:
    """Train a job; its result, as `training.train` returns it. May be called from several threads at once.

    `progress(step, note)` is called about once a second, at a URL after evaluations. A job whose folder holds a
    checkpoint goes on from there. Raises TrainingError, in one line.
    """
    workers = cluster.student
    gpu = workers.resources.get("GPU", 0) > 0
    kept = workers.storage or remote.url(job.folder)
    field = "cluster.student.storage" if workers.storage else "output"
    system, place = _storage(kept, field) if kept else (None, str(Path(job.folder).absolute()))
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(job, progress, ended), daemon=True)
    said = Path(job.folder) / ERROR
    remote.remove(said)
    with score.scorers(job, cluster) as scorer:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job, "scorer": scorer},
            # a cluster may count GPUs where torch has none, as tests of placement do
            torch_config=TorchConfig(backend="nccl" if gpu and dist.is_nccl_available() else "gloo"),
            scaling_config=ray_train.ScalingConfig(
                num_workers=workers.workers,
                use_gpu=gpu,
                resources_per_worker=dict(workers.resources),
            ),
            run_config=ray_train.RunConfig(
                # the same name in the same place: Ray goes on from the last checkpoint
                name=f"{Path(job.folder).name}-{_mark(job)}" if workers.storage else "checkpoints",
                storage_path=place,
                storage_filesystem=system,
                callbacks=list(callbacks),
                failure_config=ray_train.FailureConfig(max_failures=workers.max_failures),
                checkpoint_config=ray_train.CheckpointConfig(num_to_keep=job.training.keep_checkpoints),
            ),
        )
        watcher.start()
        try:
            result: Any = trainer.fit().return_value
        except ray_train.TrainingFailedError as error:
            with suppress(RunError):
                remote.fetch(said)
            raise TrainingError(said.read_text() if said.exists() else _cause(job, error)) from error
        finally:
            ended.set()
            watcher.join()
            remote.fetch(job.folder)
    if "error" in result:
        raise TrainingError(result["error"])
    return result


def _storage(url: str, field: str) -> tuple[Any, str]:
    """The file system and path of any URL that fsspec knows. Raises TrainingError where it cannot be written."""
    try:
        system, path = url_to_fs(url)
        system.makedirs(path, exist_ok=True)
    except Exception as error:  # of as many kinds as there are file systems
        raise TrainingError(f"{field}: {url}: {str(error).splitlines()[0]}") from None
    return PyFileSystem(FSSpecHandler(system)), path


def _mark(job: TrainingSpec) -> str:
    """What names a training in a storage that others use as well."""
    return fingerprint([job.folder, job.marks, job.training.model_dump(), job.model.model_dump(), job.seed])


def _cause(job: TrainingSpec, error: ray_train.TrainingFailedError) -> str:
    """What ended the worker, in one line."""
    inner = next(iter(getattr(error, "worker_failures", {}).values()), error)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{job.name}: {lines[-1] if lines else type(inner).__name__}"


def _watch(job: TrainingSpec, progress: Callable[[int, str], None], ended: threading.Event) -> None:
    """Follow a training's log, which is where all its numbers are anyway."""
    log, offset, last = Path(job.folder) / LOG, 0, {}
    counted = {"examples": 0, "tokens": 0}
    over = False
    while not over:
        over = ended.wait(POLL if remote.url(log) is None else REMOTE_POLL)  # once more after the end
        try:
            new = remote.tail(log, offset)
        except RunError:
            continue
        if new is None:
            offset = 0
            continue
        whole = new[: new.rfind(b"\n") + 1]
        offset += len(whole)
        try:
            for line in whole.splitlines():
                last.update(json.loads(line))
        except ValueError:  # a resumed training cut its log meanwhile
            offset = 0
        for name, before in counted.items():
            counted[name] = max(before, last.get(name, 0))  # a resumed training says again what it said
            counters.add(f"{name}_trained", counted[name] - before, job.run, job.name)
        if last:
            notes = [f"{k.replace('_', ' ')} {last[k]:.3f}" for k in ("loss", "dev_loss") if k in last]
            progress(last["step"], ", ".join(notes))
