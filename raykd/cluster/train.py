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

from raykd.cluster import counters, score
from raykd.errors import RaykdError, RunError, TrainingError, comes_again, first_line
from raykd.recipe.cluster import Cluster
from raykd.run import remote
from raykd.run.files import fingerprint, write_json
from raykd.training.trackers import FILES, LOG

if TYPE_CHECKING:
    from raykd.training.job import TrainingResult, TrainingSpec

ERROR = "error.txt"  # in a training's folder: why one of its workers gave up
BEST = "best.json"  # in a training's folder at a URL: {step} of the model there; absent while a model is sent
POLL, REMOTE_POLL = 1.0, 10.0  # seconds between looks at a training's log, for the bars


def _worker(config: dict) -> Any:
    """The body of a Ray Train worker; returns a TrainingResult, or {error} for an error that a retry would repeat."""
    from raykd.training.checkpoints import best_step
    from raykd.training.job import needed_files
    from raykd.training.loop import train  # here, so that Ray's own processes need not load torch and transformers

    spec: TrainingSpec = config["spec"]
    first = ray_train.get_context().get_world_rank() == 0

    def report(metrics: dict, folder: Path) -> None:
        if first and remote.url(spec.folder):
            with suppress(RunError):  # then the model is made again from the checkpoint
                _send(Path(spec.folder), best_step(folder))
        ray_train.report(metrics, checkpoint=ray_train.Checkpoint.from_directory(str(folder)))

    error_file = Path(spec.folder) / ERROR
    Path(spec.folder).mkdir(parents=True, exist_ok=True)
    fetched = remote.fetch(error_file, *needed_files(spec), *([spec.folder] if first else []))
    if remote.url(error_file) and error_file not in fetched:
        error_file.unlink(missing_ok=True)
    if error_file.exists():  # of the workers before these
        return {"error": error_file.read_text()}
    checkpoint = ray_train.get_checkpoint()
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            if folder and first and remote.url(spec.folder):
                _remove_other_model(Path(spec.folder), best_step(Path(folder)))
            result = train(spec, report, Path(folder) if folder else None, config["scorer"])
        if first:
            remote.send(spec.folder)
        return result
    except Exception as error:
        if not comes_again(error):
            raise  # a lost worker, or what may be one: Ray Train starts the workers again
        line = (
            str(error) if isinstance(error, RaykdError) else f"{spec.name}: {type(error).__name__}: {first_line(error)}"
        )
        if ray_train.get_context().get_world_size() == 1:
            return {"error": line}
        error_file.write_text(line)
        remote.send(error_file)
        raise  # which ends the other workers, who may be waiting for this one


def _send(folder: Path, best_step: int) -> None:
    """Send the files of a training so far. BEST is removed while a model is sent, so that no partial one is used."""
    best = folder / BEST
    if not best.exists() or json.loads(best.read_text())["step"] != best_step:
        remote.remove(best)
        remote.send(folder / "model")
        write_json(best, {"step": best_step})
    remote.send(*(folder / name for name in (*FILES, BEST)))


def _remove_other_model(folder: Path, best_step: int) -> None:
    """Remove the training's model if it is not that of the checkpoint's best step."""
    best = remote.tail(folder / BEST, 0)
    if best is None or json.loads(best)["step"] != best_step:
        shutil.rmtree(folder / "model", ignore_errors=True)
        (folder / BEST).unlink(missing_ok=True)


def fit(
    spec: TrainingSpec, cluster: Cluster, progress: Callable[[int, str], None], callbacks: Sequence[Any] = ()
) -> TrainingResult:
    """Train a spec; returns its `raykd.training.job.TrainingResult`. May be called from several threads at once.

    `progress(step, note)` is called about once a second, or after evaluations if the folder is at a URL; `callbacks`
    are Ray Train's. If the folder holds a checkpoint, the training resumes from it. Raises TrainingError, in one line.
    """
    workers = cluster.student
    gpu = workers.resources.get("GPU", 0) > 0
    url = workers.storage or remote.url(spec.folder)
    field = "cluster.student.storage" if workers.storage else "output"
    system, path = _storage(url, field) if url else (None, str(Path(spec.folder).absolute()))
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(spec, progress, ended), daemon=True)
    error_file = Path(spec.folder) / ERROR
    remote.remove(error_file)
    with score.scorers(spec, cluster) as scorer:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"spec": spec, "scorer": scorer},
            # a cluster may count GPUs where torch has none, as tests of placement do
            torch_config=TorchConfig(backend="nccl" if gpu and dist.is_nccl_available() else "gloo"),
            scaling_config=ray_train.ScalingConfig(
                num_workers=workers.workers,
                use_gpu=gpu,
                resources_per_worker=dict(workers.resources),
            ),
            run_config=ray_train.RunConfig(
                # the same name in the same place: Ray goes on from the last checkpoint
                name=f"{Path(spec.folder).name}-{_mark(spec)}" if workers.storage else "checkpoints",
                storage_path=path,
                storage_filesystem=system,
                callbacks=list(callbacks),
                failure_config=ray_train.FailureConfig(max_failures=workers.max_failures),
                checkpoint_config=ray_train.CheckpointConfig(num_to_keep=spec.training.keep_checkpoints),
            ),
        )
        watcher.start()
        try:
            result: Any = trainer.fit().return_value
        except ray_train.TrainingFailedError as error:
            with suppress(RunError):
                remote.fetch(error_file)
            raise TrainingError(error_file.read_text() if error_file.exists() else _cause(spec, error)) from error
        finally:
            ended.set()
            watcher.join()
            remote.fetch(spec.folder)
    if "error" in result:
        raise TrainingError(result["error"])
    return result


def _storage(url: str, field: str) -> tuple[Any, str]:
    """The file system and path of any URL that fsspec knows. Raises TrainingError if it cannot be written."""
    try:
        system, path = url_to_fs(url)
        system.makedirs(path, exist_ok=True)
    except Exception as error:  # of as many kinds as there are file systems
        raise TrainingError(f"{field}: {url}: {str(error).splitlines()[0]}") from None
    return PyFileSystem(FSSpecHandler(system)), path


def _mark(spec: TrainingSpec) -> str:
    """A fingerprint that names a training in a storage that other trainings use as well."""
    marks = (spec.rows.mark, spec.dev.mark if spec.dev else "")
    return fingerprint([spec.folder, marks, spec.training.model_dump(), spec.model.model_dump(), spec.seed])


def _cause(spec: TrainingSpec, error: ray_train.TrainingFailedError) -> str:
    """The error that ended the worker, in one line."""
    inner = next(iter(getattr(error, "worker_failures", {}).values()), error)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{spec.name}: {lines[-1] if lines else type(inner).__name__}"


def _watch(spec: TrainingSpec, progress: Callable[[int, str], None], ended: threading.Event) -> None:
    """Read a training's log until it has ended, for the bar and for Ray's counters."""
    log, offset, last = Path(spec.folder) / LOG, 0, {}
    counted = {"examples": 0, "tokens": 0}
    last_look = False
    while not last_look:
        last_look = ended.wait(POLL if remote.url(log) is None else REMOTE_POLL)  # one more look after the end
        try:
            new_bytes = remote.tail(log, offset)
        except RunError:
            continue
        if new_bytes is None:
            offset = 0
            continue
        whole = new_bytes[: new_bytes.rfind(b"\n") + 1]
        offset += len(whole)
        try:
            for line in whole.splitlines():
                last.update(json.loads(line))
        except ValueError:  # a resumed training cut its log meanwhile
            offset = 0
        for name, before in counted.items():
            counted[name] = max(before, last.get(name, 0))  # a resumed training logs some steps again
            counters.add(f"{name}_trained", counted[name] - before, spec.run, spec.name)
        if last:
            notes = [f"{k.replace('_', ' ')} {last[k]:.3f}" for k in ("loss", "dev_loss") if k in last]
            progress(last["step"], ", ".join(notes))
