"""Teachers in actors of their own that score the students' batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from raykd.cluster import resources
from raykd.recipe.cluster import Cluster
from raykd.recipe.training import RemoteOutputs
from raykd.run import remote

if TYPE_CHECKING:
    from raykd.data.prompts import PromptEncoder
    from raykd.training.job import TrainingSpec


class _Teacher:
    """The actor: a frozen model."""

    def __init__(self, reading: PromptEncoder, dtype: str, columns: int | None, k: int, threads: int):
        import torch

        from raykd.training.teachers import InProcessTeacher

        remote.fetch(reading.tokenizer)
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher, self.k = InProcessTeacher(reading, dtype, device, columns), k

    def top_k(self, teacher: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        return self.teacher.top_k({name: torch.from_numpy(a.copy()) for name, a in teacher.items()}, self.k)


class ActorScorer:
    """`teaching.Scorer` over some actors, asked in turn. Can be sent to workers."""

    def __init__(self, actors: list[Any]):
        self.actors, self.turn = actors, itertools.count()

    def __reduce__(self):
        return ActorScorer, (self.actors,)

    def ask(self, teacher: dict[str, Any]) -> Any:
        actor = self.actors[next(self.turn) % len(self.actors)]
        return actor.top_k.remote({name: tensor.numpy() for name, tensor in teacher.items()})

    def answer(self, asked: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return ray.get(asked)


@contextmanager
def scorers(job: TrainingSpec, cluster: Cluster) -> Iterator[ActorScorer | None]:
    """The scorer that a job asks for, as long as it trains; None where it asks for none."""
    from raykd.models.tokenizers import load_tokenizer, shared_vocab_size

    wanted = job.training.teacher
    if not job.training.needs_teacher() or not isinstance(wanted, RemoteOutputs) or job.teacher is None:
        yield None
        return
    columns = shared_vocab_size(load_tokenizer(job.tokenizer), load_tokenizer(job.teacher.tokenizer))
    place, count = cluster.teacher, cluster.teacher.bounds()[1]
    custom = {name: amount for name, amount in place.resources.items() if name not in ("CPU", "GPU")}
    made = ray.remote(_Teacher).options(
        num_cpus=place.resources.get("CPU", 0),
        num_gpus=place.resources.get("GPU", 0),
        resources=custom or None,
        max_restarts=place.max_failures,
        max_task_retries=-1,  # of a node that is just dying many tries fail; its deaths are bounded above
    )
    threads = resources.threads(place.threads, 1 + count)
    arguments = (job.teacher, wanted.dtype, columns, wanted.k, threads)
    actors: list[Any] = [made.remote(*arguments) for _ in range(count)]
    try:
        yield ActorScorer(actors)
    finally:
        for actor in actors:
            ray.kill(actor)
