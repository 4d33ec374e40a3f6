"""TODO: docstring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raykd.recipe.section import Section


class Actors(Section):
    """The engines of a labelling pass. Each is held by one actor on one node."""

    replicas: int | tuple[int, int] = Field(
        default=1, description="or [min, max]: begun with min, one where it is 0, and grown while inputs wait"
    )
    resources: dict[str, float] = Field(default={"CPU": 1}, description="of Ray, per replica: CPU, GPU, custom ones")
    threads: int | None = Field(default=None, ge=1, description="CPU threads per replica; default: the machine's share")
    max_failures: int = Field(
        default=3, ge=0, description="deaths of a replica's engine, or actor, before the run fails"
    )
    hang_minutes: float = Field(default=10, gt=0, description="a vLLM that says nothing for so long is restarted")

    @model_validator(mode="after")
    def _bounds(self) -> Actors:
        least, most = self.bounds()
        if not 1 <= most or not 0 <= least <= most:
            raise ValueError(f"replicas: expected a number above 0, or [min, max], found {self.replicas}")
        return self

    def bounds(self) -> tuple[int, int]:
        """The least and the most replicas."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas


class Workers(Section):
    """What each student takes."""

    workers: int | tuple[int, int] = Field(
        default=1, description="per student; or [min, max]: as many as the cluster has, at every start and restart"
    )
    parallel: Literal["data", "fsdp"] = Field(
        default="data", description="each worker holds the whole student, or a part of it (FSDP2)"
    )
    resources: dict[str, float] = Field(default={"CPU": 1}, description="of Ray, per worker: CPU, GPU, custom ones")
    threads: int | None = Field(default=None, ge=1, description="CPU threads per worker; default: the machine's share")
    max_failures: int = Field(default=3, ge=0, description="workers lost before the run fails")
    storage: str | None = Field(
        default=None, description="where checkpoints go: a folder or URL that all nodes reach; default: the run folder"
    )

    @model_validator(mode="after")
    def _bounds(self) -> Workers:
        least, most = self.bounds()
        if not 1 <= least <= most:
            raise ValueError(f"workers: expected a number above 0, or [min, max], found {self.workers}")
        return self

    def bounds(self) -> tuple[int, int]:
        """The least and the most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


class Cluster(Section):
    """Where things run. Changing this section does not change the run."""

    teacher: Actors = Actors()
    student: Workers = Workers()
    labelling_students: Actors = Actors()
    local_cpus: int | None = Field(
        default=None, ge=4, description="logical CPUs of a local Ray; default: max(8, cores)"
    )
    capacity: dict[str, float] | None = Field(
        default=None, description="what an autoscaling cluster may grow to; default: what is alive"
    )
    wait_minutes: float = Field(default=10, gt=0, description="how long to wait for resources that may still come")
