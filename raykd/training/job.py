"""What a training is to do, which files it reads, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource, StoredSource
from raykd.recipe.models import FromConfig, Model
from raykd.recipe.trackers import Tracker
from raykd.recipe.training import Training


@dataclass(frozen=True)
class MarkedSource:
    """Where rows come from, and a fingerprint of their content, which names their encoded form."""

    source: FileSource | tuple[StoredSource, ...]
    mark: str


@dataclass(frozen=True)
class TrainingSpec:
    """One training: a model, the rows it learns, how it reads them, and where its files are.

    name, run   of the training, and of the run that it belongs to
    tokenizer   folder of the tokenizer that is saved with the model
    rows, dev   rows to learn, and rows to evaluate on; without dev a share of the rows is held out
    student     how the student reads its prompts; teacher: the same of the teacher whose outputs a loss needs, whose
                tokenizer is its model's folder
    folder      for the model, the log and checkpoints that are being written
    tokens      folder of encoded rows, which several trainings share
    threads     CPU threads of each worker
    parallel    data, or fsdp: the student is the same in every worker, or in parts
    """

    name: str
    model: Model
    tokenizer: str
    training: Training
    rows: MarkedSource
    student: PromptEncoder
    folder: str
    tokens: str
    seed: int
    threads: int
    dev: MarkedSource | None = None
    teacher: PromptEncoder | None = None
    max_bad_rows: int = 0
    parallel: str = "data"
    run: str = ""
    trackers: tuple[Tracker, ...] = ()


class TrainingStats(TypedDict):
    """Counts and rates of a training, over all workers and over interruptions."""

    rows: int  # to learn, without those held out
    dev_rows: int  # to evaluate on
    tokens: int  # target tokens that were trained on, every epoch anew
    seconds: float  # of training steps, waiting for batches included; without evaluations
    waited_seconds: float  # of these, spent waiting for a batch
    tokens_per_second: float  # target tokens
    rows_per_second: float
    padding: float  # share of padding among the tokens computed, 0 to 1
    cut_targets: int  # targets that were too long and were cut
    empty_targets: int
    parameters: int  # of the student
    trained_parameters: int
    threads: int  # CPU threads of each worker
    workers: int


class TrainingResult(TypedDict):
    """What a training comes to, as plain values that JSON can hold."""

    model: str  # folder of the best model, in Hugging Face's form
    steps: int  # optimizer steps
    best_step: int  # the step whose model is kept
    dev_loss: float  # of that model: nats per target token, or per sequence where the loss is reduced so
    score: float  # of that model: the metric of `choose_by`, or minus it where lower is better
    stopped: str | None  # max_steps (the steps or epochs are done) or patience
    bad_rows: list[dict[str, Any]]  # {row, reason} of every row that was left out
    stats: TrainingStats


def needed_files(spec: TrainingSpec) -> list[str]:
    """Files and folders that a training reads, beside its own folder."""
    paths = [spec.tokenizer, spec.student.tokenizer, *([spec.teacher.tokenizer] if spec.teacher else [])]
    paths += [spec.model.path] if not isinstance(spec.model, FromConfig) else []
    for rows in [spec.rows, *([spec.dev] if spec.dev else [])]:
        if isinstance(rows.source, FileSource):
            paths.append(rows.source.path)
            continue
        for stored in rows.source:
            paths += [str(Path(stored.prompts).parent), *([stored.gold] if stored.gold else [])]
    return paths
