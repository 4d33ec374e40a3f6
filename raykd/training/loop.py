"""The loop: one for every student and every fine-tuned teacher.

It knows neither Ray nor recipe files: `train` is a function of a spec, and of a checkpoint from which it resumes. Its
trajectory depends on the spec alone, not on the number of workers, micro-batches or interruptions.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from raykd.errors import TrainingError
from raykd.losses.tokens import Result
from raykd.models.export import export_model
from raykd.training.checkpoints import load_checkpoint, save_checkpoint
from raykd.training.evaluate import evaluate, score_of
from raykd.training.features import FeatureStep, draw_of
from raykd.training.forward import forward, step_batch, with_denominators
from raykd.training.job import TrainingResult, TrainingSpec
from raykd.training.loader import BatchLoader
from raykd.training.progress import Progress, progress_from
from raykd.training.setup import TrainingSetup, build
from raykd.training.sharder import GlobalBatch
from raykd.training.teachers import Scorer
from raykd.training.trackers import Log, NoLog
from raykd.training.workers import from_first_worker, gradient_sync, rank, sum_over_workers, unwrapped, world_size

CHECKPOINT = ".checkpoint-"  # folders of checkpoints that are being written
LOG_EVERY = 10  # steps between lines of log.jsonl

Report = Callable[[dict[str, float], Path], None]


def train(
    spec: TrainingSpec, report: Report, resume: Path | None = None, scorer: Scorer | None = None
) -> TrainingResult:
    """Train to the end, from the beginning or from the checkpoint in the folder `resume`.

    The best model is saved at `<spec.folder>/model`, as a Hugging Face folder; metrics go to `<spec.folder>/log.jsonl`.
    `report(metrics, folder)` is called by every worker at every evaluation; the folder holds the worker's part of a
    checkpoint, and is removed after the call. `scorer` answers for a teacher of kind remote.

    Raises TrainingError for a loss or gradient that is not finite, and the errors of `setup.build`.
    """
    torch.set_num_threads(spec.threads)
    for folder in Path(spec.folder).glob(f"{CHECKPOINT}*"):  # of a worker that was killed
        shutil.rmtree(folder, ignore_errors=True)
    setup = build(spec, scorer)
    progress = _restored(setup, resume) if resume else Progress()
    run = TrainingRun(setup, progress)
    loader = BatchLoader(
        plan=setup.plan,
        sharder=setup.sharder,
        cursor=progress.cursor,
        step=progress.step,
        ask=lambda micro_batch: setup.teacher.ask(micro_batch, setup.needs),
        sampler=setup.sampler,
    )
    with _open_log(spec, progress.step) as log, loader as batches:
        if resume and from_first_worker(not (Path(spec.folder) / "model").exists()):  # lost, or elsewhere
            progress.forget_best()
            run.evaluate(log)
        while not run.stop_reason():
            started = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - started
            metrics = run.step(batch)
            progress.add(batch, seconds=time.monotonic() - started, waited_seconds=waited)
            due = run.evaluation_due()
            if due or progress.step % LOG_EVERY == 0:
                log.write(progress.step, {**metrics, **progress.metrics()})
            if due:
                run.report_checkpoint(report, run.evaluate(log))
    return run.result()


class TrainingRun:
    """A running training: its setup, and its progress."""

    def __init__(self, setup: TrainingSetup, progress: Progress):
        self.setup, self.progress, self.settings = setup, progress, setup.spec.training

    def step(self, batch: GlobalBatch) -> dict[str, float]:
        """One optimizer step; returns {loss, each term by name if there are several, learning_rate, gradient_norm}.

        Every term is divided once, by its denominator over the global batch of all workers. DDP and FSDP average the
        gradients of the workers, so each worker multiplies its loss by the number of workers.
        """
        setup = self.setup
        learning_rate = self.settings.learning_rate * setup.schedule(self.share_done())
        for group in setup.optimizer.param_groups:
            group["lr"] = learning_rate
        setup.parallel.train()
        batches, denominators = with_denominators(
            [step_batch(m, setup.teacher.outputs(m.handle), setup.device) for m in batch.micro_batches],
            setup.losses,
            batch.weight,
            setup.student.shared_vocab_size,
        )
        draw = draw_of(setup.spec.seed, self.progress.step)
        features = FeatureStep(setup.feature_losses, [b.features for b in batches if b.features], draw)

        def result_of(number: int) -> Result:
            return forward(setup.parallel, batches[number], setup.losses, draw, self.settings.precision)

        if features.waits and len(batches) > 1:
            self._seed()
            features.read_twice(lambda number: result_of(number).sums, len(batches))
        self._seed()
        sums = torch.zeros(1 + len(denominators), dtype=torch.float64, device=setup.device)
        for number in range(len(batches)):
            with gradient_sync(setup.parallel, last=number == len(batches) - 1):
                result = result_of(number)
                if features.waits:
                    features.join(result.sums)
                total = result.total + features.loss(result.sums) if result.sums else result.total
                (total * world_size()).backward()
            sums += torch.stack([result.total.detach(), *(result.terms[name].sum for name in denominators)]).double()
        loss, *values = sum_over_workers(sums).tolist()
        loss += features.finish()
        self._require_finite(loss, "loss is", batch)
        norm = torch.nn.utils.clip_grad_norm_(setup.parallel.parameters(), self.settings.max_grad_norm)
        norm = float(getattr(norm, "full_tensor", lambda: norm)())
        self._require_finite(norm, "gradient's norm is", batch)
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)
        terms = {name: sum_ / max(denominators[name], 1e-9) for name, sum_ in zip(denominators, values, strict=True)}
        terms |= {name: float(value) for name, value in features.values.items()}
        metrics = {"loss": loss, **(terms if len(terms) > 1 else {})}
        return metrics | {"learning_rate": learning_rate, "gradient_norm": norm}

    def _seed(self) -> None:
        """Seed dropout for a step, resumed or not, and for every reading of its micro-batches."""
        torch.manual_seed(hash((self.setup.spec.seed, self.progress.step, rank())) & 0x7FFFFFFF)

    def share_done(self) -> float:
        """The share of the training that is done, from 0 to 1."""
        if self.setup.total_steps:
            return self.progress.step / self.setup.total_steps
        return self.progress.epoch_progress / (self.settings.epochs or 1)

    def stop_reason(self) -> str | None:
        """Why the training ends: max_steps (of steps or epochs) or patience; None while it goes on."""
        if self.share_done() >= 1:
            return "max_steps"
        patience = self.settings.patience
        return "patience" if patience and self.progress.worse >= patience else None

    def evaluation_due(self) -> bool:
        """Whether an evaluation follows the step that was just done; it always follows the last step."""
        every, progress = self.settings.evaluate_every, self.progress
        if self.settings.evaluate_unit == "steps":
            due = progress.step % int(every) == 0
        else:
            done, before = progress.epoch_progress, progress.evaluated_epoch_progress
            due = math.floor(done / every + 1e-9) > math.floor(before / every + 1e-9)
        return due or self.share_done() >= 1

    def evaluate(self, log: Log | NoLog) -> dict[str, float]:
        """Evaluate on the dev rows, log the scores and return them; export the model if it is the best so far.

        Raises TrainingError for a dev loss that is not finite.
        """
        setup, progress = self.setup, self.progress
        scores = evaluate(setup)
        loss = scores["dev_loss"]
        if not math.isfinite(loss):
            raise TrainingError(f"{setup.spec.name}: the dev loss is {loss} at step {progress.step}")
        progress.add_evaluation(score_of(scores, self.settings.choose_by), loss)
        log.write(progress.step, scores)
        if progress.best_step == progress.step:
            export_model(Path(setup.spec.folder) / "model", setup.student, setup.tokenizer, rank())
        return scores

    def report_checkpoint(self, report: Report, scores: dict[str, float]) -> None:
        """Write a checkpoint and report it, with {step, progress in percent, examples, tokens} and the scores."""
        progress, folder = self.progress, self.setup.spec.folder
        counts = {"examples": progress.examples, "tokens": progress.tokens}
        metrics = {"step": progress.step, "progress": 100 * self.share_done(), **counts, **scores}
        try:
            checkpoint = Path(tempfile.mkdtemp(prefix=CHECKPOINT, dir=folder))
        except OSError as error:
            raise TrainingError(f"{folder}: the checkpoint cannot be written: {error.strerror}") from None
        try:
            save_checkpoint(checkpoint, unwrapped(self.setup.parallel), self.setup.optimizer, progress.state(), rank())
            report(metrics, checkpoint)
        finally:
            shutil.rmtree(checkpoint, ignore_errors=True)

    def result(self) -> TrainingResult:
        """The result of the training so far; waits until all rows are encoded."""
        setup, progress = self.setup, self.progress
        summaries = [stream.about() for stream in setup.streams if stream]
        seconds = max(progress.seconds, 1e-9)
        parameters = list(setup.student.model.parameters())
        return {
            "model": str(Path(setup.spec.folder) / "model"),
            "steps": progress.step,
            "best_step": progress.best_step,
            "dev_loss": progress.best_loss,
            "score": progress.best_score,
            "stopped": self.stop_reason(),
            "bad_rows": [bad_row for summary in summaries for bad_row in summary["bad_rows"]],
            "stats": {
                "rows": setup.plan.rows,
                "dev_rows": len(setup.plan.dev.targets),
                "tokens": progress.tokens,
                "seconds": progress.seconds,
                "waited_seconds": progress.waited_seconds,
                "tokens_per_second": progress.tokens / seconds,
                "rows_per_second": progress.examples / seconds,
                "padding": 1 - progress.real_tokens / max(progress.padded_tokens, 1),
                "cut_targets": sum(summary["cut"] for summary in summaries),
                "empty_targets": sum(summary["empty"] for summary in summaries),
                "parameters": sum(p.numel() for p in parameters),
                "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
                "threads": torch.get_num_threads(),
                "workers": world_size(),
            },
        }

    def _require_finite(self, value: float, words: str, batch: GlobalBatch) -> None:
        """Raise TrainingError, with the first rows of the batch, for a number that is not finite."""
        if math.isfinite(value):
            return
        rows = ", ".join(batch.dataset.id(int(batch.dataset.row_of[i])) for i in batch.targets[:8])
        more = " ..." if batch.rows > 8 else ""
        at = f"the {words} {value} at step {self.progress.step + 1}"
        raise TrainingError(f"{self.setup.spec.name}: {at}; {batch.rows} rows in the batch: {rows}{more}")


def _restored(setup: TrainingSetup, checkpoint: Path) -> Progress:
    """Load a checkpoint into the student and its optimizer; returns its progress. Raises TrainingError."""
    return progress_from(load_checkpoint(checkpoint, unwrapped(setup.parallel), setup.optimizer))


def _open_log(spec: TrainingSpec, step: int) -> Log | NoLog:
    """The log of a training that goes on at `step`; only the first worker has a real one."""
    if rank():
        return NoLog()
    settings = {"model": spec.model.model_dump(mode="json"), "training": spec.training.model_dump(mode="json")}
    return Log(Path(spec.folder), step, spec.name, {**settings, "seed": spec.seed}, spec.trackers)
