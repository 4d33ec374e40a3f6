"""TODO: docstring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raykd.data.prompts import PromptEncoder
from raykd.recipe.models import FromConfig, Model
from raykd.recipe.trackers import Tracker
from raykd.recipe.training import Training
from raykd.training.sources import FileSource, StoredSource


@dataclass(frozen=True)
class TrainingSpec:
    """One training: a model, the rows it learns and how they are read, and where to put it.

    source, dev  rows to learn and to judge by; without dev a share of the rows is held out
    student, teacher  how the student, and a teacher that reads along, read their prompts; the teacher's tokenizer
                 is its model's folder
    run          its run's name
    tokens       the folder where encoded rows are kept; marks: what names the content of (source, dev)
    """

    name: str
    model: Model
    tokenizer: str
    training: Training
    source: FileSource | tuple[StoredSource, ...]
    dev: FileSource | None
    student: PromptEncoder
    folder: str
    tokens: str
    marks: tuple[str, str]
    seed: int
    threads: int
    teacher: PromptEncoder | None = None
    max_bad_rows: int = 0
    parallel: str = "data"
    run: str = ""
    trackers: tuple[Tracker, ...] = ()


def needed_files(job: TrainingSpec) -> list[str]:
    """Files and folders that a training reads, beside its own folder."""
    found = [job.tokenizer, job.student.tokenizer, *([job.teacher.tokenizer] if job.teacher else [])]
    found += [job.model.path] if not isinstance(job.model, FromConfig) else []
    for source in [*(job.source if isinstance(job.source, tuple) else [job.source]), *([job.dev] if job.dev else [])]:
        if isinstance(source, FileSource):
            found.append(source.path)
        else:
            found += [str(Path(source.prompts).parent), *([source.gold] if source.gold else [])]
    return found
