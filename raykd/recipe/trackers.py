"""The section `trackers`: where trainings log to, beside their log.jsonl and TensorBoard."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raykd.recipe.section import Section


class Wandb(Section):
    """Weights & Biases: a W&B run per training. The key is W&B's own: WANDB_API_KEY, or `wandb login`."""

    kind: Literal["wandb"]
    project: str = Field(min_length=1)
    entity: str | None = Field(default=None, description="user or team; default: the owner of the key")
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline: into the training's folder, for `wandb sync`"
    )


class Mlflow(Section):
    """MLflow: an MLflow run per training. User and password are MLflow's own: MLFLOW_TRACKING_USERNAME, ..."""

    kind: Literal["mlflow"]
    tracking_uri: str = Field(
        description="https://host, or file:///folder; sqlite:///file needs the full mlflow package"
    )
    experiment: str = Field(min_length=1, description="created where it does not exist")

    @model_validator(mode="after")
    def _an_address_without_secrets(self) -> Mlflow:
        scheme, separator, rest = self.tracking_uri.partition("://")
        if not separator and scheme != "databricks":
            raise ValueError(f"tracking_uri: expected https://host or file:///folder, found {self.tracking_uri!r}")
        if "@" in rest.split("/")[0]:
            raise ValueError(
                "tracking_uri: a recipe holds no secrets; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


Tracker = Annotated[Wandb | Mlflow, Field(discriminator="kind")]
