"""Join a Ray cluster, or start Ray on this machine and leave nothing of it behind."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from raykd.errors import ClusterError
from raykd.reaper import reaper
from raykd.recipe.cluster import Cluster

MARK = "RAYKD_RUN"  # in the environment of every process of a local Ray, by which the reaper recognises them
OBJECT_STORE = 300 * 1024**2  # bytes, of a local Ray


@contextmanager
def ray_cluster(
    settings: Cluster,
    logs: Path,
    verbose: bool,
    lock: IO | None = None,
    dashboard: bool = False,
    modules: Sequence[Path] = (),
) -> Iterator[str]:
    """Connect to Ray while the block runs; yields a line for the user, empty if Ray was connected before.

    RAY_ADDRESS or a Ray job says which cluster to join, else Ray is started on this machine. A Ray started here listens
    on loopback only, writes its output to `logs`, and ends with the block. If this process is killed, a reaper process
    ends it; it shares `lock`, so that the lock is free only when no process of the run is left. `dashboard` starts it
    with Ray's dashboard, without which a stopped trial does not free the resources of its Ray Train workers. The
    processes of this connection can import `modules`, files and packages of one folder: on this machine from there, on
    a cluster from copies; if Ray was connected before, as it was then. Usage statistics are off. Raises ClusterError if
    no cluster answers.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():  # a trial's process, or a second run of this one
        _prepare(settings, verbose)
        yield ""
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # report() waits for this poll
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(settings.wait_minutes * 60)
    if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        with _joined(settings, verbose, modules) as line:
            yield line
    else:
        with _on_path(modules), _local(settings, logs, verbose, lock, dashboard) as line:
            yield line


@contextmanager
def _on_path(modules: Sequence[Path]) -> Iterator[None]:
    """A block that starts processes which can import these modules."""
    before = os.environ.get("PYTHONPATH")
    folders = dict.fromkeys(str(module.parent) for module in modules)
    if folders:
        os.environ["PYTHONPATH"] = os.pathsep.join([*([before] if before else []), *folders])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _joined(settings: Cluster, verbose: bool, modules: Sequence[Path]) -> Iterator[str]:
    import ray

    level = logging.INFO if verbose else logging.ERROR
    copies = {"py_modules": [str(module) for module in modules]} if modules else None
    try:
        ray.init(address="auto", runtime_env=copies, log_to_driver=verbose, logging_level=level)
    except ValueError as error:
        if not copies or "merge" not in str(error):
            raise
        raise ClusterError(
            f"the job's runtime environment has py_modules of its own: put what they are beside {modules[0].name}, "
            "whose copies raykd gives to every node"
        ) from None
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS", "auto")
        raise ClusterError(f"RAY_ADDRESS={address}: no Ray cluster answers: {str(error).splitlines()[0]}") from None
    _prepare(settings, verbose)
    try:
        yield f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}"
    finally:
        ray.shutdown()


@contextmanager
def _local(settings: Cluster, logs: Path, verbose: bool, lock: IO | None, dashboard: bool) -> Iterator[str]:
    # in the system's folder of temporary files: a socket's path may have 107 characters, a run folder's is longer
    folder = Path(tempfile.mkdtemp(prefix="raykd-"))
    os.environ[MARK] = folder.name
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on every system: a Ray for this machine alone, on loopback
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody else can reach it
    os.environ.setdefault("RAY_num_workers_soft_limit", "2")  # idle ones kept; each takes a hundredth of a core
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 cost vLLM a fifth of its speed on two cores
    ending = reaper(f"{MARK}={folder.name}", folder, logs, (lock.fileno(),) if lock else ())
    import ray

    cpus = settings.local_cpus or max(8, os.cpu_count() or 1)
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            object_store_memory=OBJECT_STORE,
            _temp_dir=str(folder),
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
        )
        _prepare(settings, verbose)
        yield f"Ray started on this machine: {cpus} logical CPUs"
    finally:
        ray.shutdown()
        assert ending.stdin is not None
        ending.stdin.close()  # tells it to reap
        ending.wait()


def _prepare(settings: Cluster, verbose: bool) -> None:
    """Set how long Ray Data waits for actors, and keep its bars and messages off the user's console."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.wait_for_min_actors_s = round(settings.wait_minutes * 60)
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    context.execution_options.verbose_progress = False
    context.memory_usage_poll_interval_s = None  # walking the pages of a process that holds a model takes its time
    if not verbose:
        for name in ("ray", "ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)
