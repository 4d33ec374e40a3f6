"""The section `cluster`: resources, numbers of actors and workers, and how many failures a run tolerates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raykd.recipe.section import Section

LEAST = 1e-4  # of a resource: Ray counts in ten-thousandths


def require_resources(field: str, resources: dict[str, float]) -> None:
    """Raise ValueError for amounts that Ray refuses: negative ones, too small ones, and several GPUs and a part."""
    for name, amount in resources.items():
        if not name.strip():
            raise ValueError(f"{field}: expected the name of a resource, found {name!r}")
        if amount < 0 or 0 < amount < LEAST:
            raise ValueError(f"{field}.{name}: expected 0, or {LEAST:g} or more, found {amount:g}")
        if name == "GPU" and amount > 1 and amount != int(amount):
            raise ValueError(f"{field}.{name}: expected a share of one GPU, or whole ones, found {amount:g}")


class Actors(Section):
    """The engines of a labelling pass. Each is in one actor, on one node."""

    replicas: int | tuple[int, int] = Field(
        default=1, description="a number, or [min, max]: starts with min (at least 1), and grows while inputs wait"
    )
    resources: dict[str, float] = Field(
        default={"CPU": 1}, description="Ray resources of a replica: CPU, GPU, custom ones"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads per replica; default: the machine's share")
    max_failures: int = Field(
        default=3, ge=0, description="how often a replica's engine or actor may die before the run fails"
    )
    hang_minutes: float = Field(
        default=10, gt=0, description="a vLLM engine that has returned nothing for so long is restarted"
    )

    @model_validator(mode="after")
    def _bounds(self) -> Actors:
        require_resources("resources", self.resources)
        least, most = self.bounds()
        if not 1 <= most or not 0 <= least <= most:
            raise ValueError(f"replicas: expected a number above 0, or [min, max], found {self.replicas}")
        return self

    def bounds(self) -> tuple[int, int]:
        """The least and the most replicas."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas


class Workers(Section):
    """The workers that train a student."""

    workers: int | tuple[int, int] = Field(
        default=1,
        description="workers per student; or [min, max]: at every start as many as the cluster has room for",
    )
    parallel: Literal["data", "fsdp"] = Field(
        default="data", description="data: each worker has the whole student; fsdp: a shard of it (FSDP2)"
    )
    resources: dict[str, float] = Field(
        default={"CPU": 1}, description="Ray resources of a worker: CPU, GPU, custom ones"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads per worker; default: the machine's share")
    max_failures: int = Field(default=3, ge=0, description="how many workers may be lost before the run fails")
    storage: str | None = Field(
        default=None, description="folder or URL for checkpoints that all nodes can reach; default: the run folder"
    )

    @model_validator(mode="after")
    def _bounds(self) -> Workers:
        require_resources("resources", self.resources)
        least, most = self.bounds()
        if not 1 <= least <= most:
            raise ValueError(f"workers: expected a number above 0, or [min, max], found {self.workers}")
        return self

    def bounds(self) -> tuple[int, int]:
        """The least and the most workers."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


class Cluster(Section):
    """The resources of a run. A change of this section does not change what a run computes."""

    teacher: Actors = Actors()
    student: Workers = Workers()
    labelling_students: Actors = Actors()
    local_cpus: int | None = Field(
        default=None, ge=4, description="logical CPUs of a local Ray; default: max(8, cores)"
    )
    capacity: dict[str, float] | None = Field(
        default=None,
        description="Ray resources that an autoscaling cluster may grow to; default: those of the nodes that are alive",
    )
    wait_minutes: float = Field(
        default=10, gt=0, description="how long to wait for resources that the cluster does not have yet"
    )

    @model_validator(mode="after")
    def _amounts(self) -> Cluster:
        require_resources("capacity", self.capacity or {})
        return self
