"""Teachers in actors of their own that score the students' batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from raykd.cluster import resources
from raykd.errors import RaykdError, TrainingError, comes_again, first_line, last_line
from raykd.recipe.cluster import Cluster
from raykd.recipe.training import RemoteOutputs
from raykd.run import remote

if TYPE_CHECKING:
    from raykd.data.prompts import PromptEncoder
    from raykd.training.job import TrainingSpec
    from raykd.training.teachers import TopKArrays


class _Teacher:
    """The actor: a frozen model that gives its k most likely tokens."""

    def __init__(self, prompts: PromptEncoder, dtype: str, vocab_size: int | None, k: int, threads: int):
        import torch

        from raykd.training.teachers import InProcessTeacher

        remote.fetch(prompts.tokenizer)
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher, self.k = InProcessTeacher(prompts, dtype, device, vocab_size), k

    def top_k(self, arrays: dict[str, np.ndarray]) -> TopKArrays:
        import torch

        return self.teacher.top_k({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, self.k)


class ActorScorer:
    """A `raykd.training.teachers.Scorer` that uses several actors in turn. Can be sent to workers."""

    def __init__(self, actors: list[Any]):
        self.actors, self.turn = actors, itertools.count()

    def __reduce__(self):
        return ActorScorer, (self.actors,)

    def ask(self, tensors: dict[str, Any]) -> ray.ObjectRef:
        """Request the outputs for a `MicroBatch.teacher` from the next actor; returns at once."""
        actor = self.actors[next(self.turn) % len(self.actors)]
        return actor.top_k.remote({name: tensor.numpy() for name, tensor in tensors.items()})

    def wait(self, request: ray.ObjectRef) -> TopKArrays:
        """The outputs of a request; waits for them. Raises TrainingError for an error that would come again."""
        try:
            return ray.get(request)
        except RayTaskError as error:
            if not comes_again(error.cause):
                raise
            cause = error.cause
            line = str(cause) if isinstance(cause, RaykdError) else f"{type(cause).__name__}: {first_line(cause)}"
            raise TrainingError(f"training.teacher: {line}") from error
        except ActorDiedError as error:  # one that died later is started again by Ray
            if "creation task" not in str(error):
                raise
            raise TrainingError(f"training.teacher: it cannot be opened: {last_line(error)}") from error


@contextmanager
def scorers(spec: TrainingSpec, cluster: Cluster) -> Iterator[ActorScorer | None]:
    """A context with the scorer of a training whose teacher is remote; yields None for any other training."""
    from raykd.models.tokenizers import load_tokenizer, shared_vocab_size

    section = spec.training.live_outputs()
    if not isinstance(section, RemoteOutputs) or spec.teacher is None:
        yield None
        return
    vocab_size = shared_vocab_size(load_tokenizer(spec.tokenizer), load_tokenizer(spec.teacher.tokenizer))
    workers, count = cluster.teacher, cluster.teacher.bounds()[1]
    custom = {name: amount for name, amount in workers.resources.items() if name not in ("CPU", "GPU")}
    actor = ray.remote(_Teacher).options(
        num_cpus=workers.resources.get("CPU", 0),
        num_gpus=workers.resources.get("GPU", 0),
        resources=custom or None,
        max_restarts=workers.max_failures,
        max_task_retries=-1,  # many tries fail on a dying node; max_restarts limits the deaths
    )
    threads = resources.threads(workers.threads, 1 + count)
    arguments = (spec.teacher, section.dtype, vocab_size, section.k, threads)
    actors: list[Any] = [actor.remote(*arguments) for _ in range(count)]
    try:
        yield ActorScorer(actors)
    finally:
        for actor in actors:
            ray.kill(actor)
