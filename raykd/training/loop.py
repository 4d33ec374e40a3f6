"""TODO: docstring."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from raykd import metrics
from raykd.errors import DataError, TrainingError
from raykd.losses import divergences
from raykd.losses.teachers import Side
from raykd.losses.tokens import IGNORE, TokenLoss, teacher_uncertainty
from raykd.models import task_heads
from raykd.models.export import export_model
from raykd.models.load import model_blocks
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.training import StoredOutputs
from raykd.training import batches
from raykd.training.checkpoints import load_checkpoint, save_checkpoint
from raykd.training.dataset import EncodedDataset, EncodedStream
from raykd.training.job import TrainingSpec
from raykd.training.loader import BatchLoader
from raykd.training.planner import BatchPlan, Cursor, Lengths
from raykd.training.setup import (
    build_losses,
    build_optimizer,
    build_schedule,
    encoded_streams,
    parallelised,
    reads_along,
    shared_vocab,
    stream_chunks,
    student_model,
    teacher_source,
    unwrapped,
)
from raykd.training.sharder import BatchSharder, GlobalBatch, MicroBatch, dev_micro_batches
from raykd.training.student import Student
from raykd.training.teachers import (
    NoTeacher,
    Scorer,
    TeacherSource,
)
from raykd.training.trackers import Log
from raykd.training.workers import from_all_workers, from_first_worker

CHECKPOINT = ".checkpoint-"  # folders of checkpoints that are being written
LOG_EVERY = 10  # steps between lines of log.jsonl
UNKNOWN_STEPS = 10_000  # what a schedule is drawn over where the number of steps is not known from the start


def train(
    job: TrainingSpec,
    report: Callable[[dict, Path], None],
    resume: Path | None = None,
    scorer: Scorer | None = None,
) -> dict:
    """Train to the end; returns {model, steps, best_step, dev_loss, score, stopped, bad_rows, stats}.

    The best model is at `<folder>/model`, as a Hugging Face folder; metrics go to `<folder>/log.jsonl`.
    `report(metrics, checkpoint_folder)` is called by every worker at every evaluation, with a folder that holds its
    part of a checkpoint and is gone afterwards. Raises TrainingError for a loss that is not finite, ModelError and
    DataError for what does not fit.
    """
    torch.set_num_threads(job.threads)
    for left in Path(job.folder).glob(f"{CHECKPOINT}*"):  # by a worker that was killed
        shutil.rmtree(left, ignore_errors=True)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(job.seed)
    task = job.student.task
    tokenizer = load_tokenizer(job.tokenizer, task == "generation")
    columns = shared_vocab(job, tokenizer)
    student = Student(student_model(job, tokenizer), columns, task).to(device)
    lengths = Lengths(not student.causal or task != "generation", task)
    encodings = encoded_streams(job, rank)
    provider = teacher_source(job, scorer, device, columns)
    parallel = parallelised(student, job.parallel, device, world)
    plan = BatchPlan(encodings[0], job.training, job.seed, lengths.sides, stream_chunks(job), encodings[1])
    teacher_pad = None
    if job.teacher and reads_along(job.training):
        teacher_pad = load_tokenizer(job.teacher.tokenizer, task == "generation").pad_token_id
    equal = job.parallel == "fsdp"
    cutter = BatchSharder(rank, world, job.training, lengths, tokenizer.pad_token_id, teacher_pad, equal)
    run = TrainingRun(job, student, parallel, provider, plan, device)
    if resume:
        run.cursor = Cursor(*run.counters.load(load_checkpoint(resume, unwrapped(parallel), run.optimizer)))
    log: Any = nullcontext() if rank else _log(job, run.counters.step)
    with log, BatchLoader(plan, cutter, run.cursor, provider.prepare) as loaded:
        if resume and from_first_worker(
            not (Path(job.folder) / "model").exists()
        ):  # it outlived the folder, or is another's
            run.counters.best, run.counters.worse = -math.inf, 0
            judged = run.judge(cutter, tokenizer)
            if rank == 0:
                log.write(run.counters.step, judged)
            export_model(Path(job.folder) / "model", student, tokenizer, rank)
        while not run.stopped():
            begun = time.monotonic()
            batch = next(loaded)
            waited = time.monotonic() - begun
            numbers = run.step(batch)
            run.counters.add(batch, time.monotonic() - begun, waited)
            due = run.evaluation_due()
            if rank == 0 and (run.counters.step % LOG_EVERY == 0 or due):
                log.write(run.counters.step, {**numbers, **run.counters.numbers()})
            if due:
                judged = run.judge(cutter, tokenizer)
                if rank == 0:
                    log.write(run.counters.step, judged)
                if run.counters.best_step == run.counters.step:
                    export_model(Path(job.folder) / "model", student, tokenizer, rank)
                counts = {"examples": run.counters.examples, "tokens": run.counters.tokens}
                about = {"step": run.counters.step, "progress": 100 * run.progress(), **counts}
                _checkpoint(run, report, rank, {**about, **judged})
    return _result(job, run, encodings, plan)


def _result(
    job: TrainingSpec, run: TrainingRun, encodings: tuple[EncodedStream, EncodedStream | None], plan: BatchPlan
) -> dict:
    abouts = [encoding.about() for encoding in encodings if encoding]
    counters = run.counters
    return {
        "model": str(Path(job.folder) / "model"),
        "steps": counters.step,
        "best_step": counters.best_step,
        "dev_loss": counters.best_loss,
        "score": counters.best,
        "stopped": run.stopped(),
        "bad_rows": [bad for about in abouts for bad in about["bad_rows"]],
        "stats": {
            "rows": plan.rows,
            "dev_rows": len(plan.dev[1]),
            "tokens": counters.tokens,
            "seconds": counters.seconds,
            "waited_seconds": counters.waited,
            "tokens_per_second": counters.tokens / max(counters.seconds, 1e-9),
            "rows_per_second": counters.examples / max(counters.seconds, 1e-9),
            "padding": 1 - counters.real / max(counters.padded, 1),
            "cut_targets": sum(about["cut"] for about in abouts),
            "empty_targets": sum(about["empty"] for about in abouts),
            "parameters": sum(p.numel() for p in run.student.parameters()),
            "trained_parameters": sum(p.numel() for p in run.student.parameters() if p.requires_grad),
            "threads": torch.get_num_threads(),
            "workers": dist.get_world_size() if dist.is_initialized() else 1,
        },
    }


class _Counters:
    """How far a training is; saved with every checkpoint."""

    def __init__(self) -> None:
        self.step = self.tokens = self.examples = self.padded = self.real = self.best_step = self.worse = 0
        self.epoch_progress = self.judged_epoch_progress = self.seconds = self.waited = 0.0
        self.best_loss, self.best = math.inf, -math.inf

    def add(self, batch: GlobalBatch, seconds: float, waited: float) -> None:
        self.step, self.tokens, self.examples = self.step + 1, self.tokens + batch.tokens, self.examples + batch.rows
        self.padded, self.real = self.padded + batch.padded, self.real + batch.real
        self.epoch_progress, self.seconds, self.waited = (
            batch.epoch_progress,
            self.seconds + seconds,
            self.waited + waited,
        )

    def numbers(self) -> dict[str, float]:
        rate = self.tokens / max(self.seconds, 1e-9)
        counts = {"epoch": self.epoch_progress, "examples": self.examples, "tokens": self.tokens}
        return {**counts, "seconds": self.seconds, "tokens_per_second": rate}

    def load(self, held: dict[str, Any]) -> list[int]:
        """Take over saved ones; returns the cursor."""
        cursor = held.pop("cursor")
        vars(self).update(held)
        return cursor


class TrainingRun:
    """A training that is under way: the student, its optimizer, and how far it is."""

    def __init__(
        self, job: TrainingSpec, student: Student, parallel: Any, provider: TeacherSource, plan: BatchPlan, device: Any
    ):
        self.job, self.settings, self.student, self.parallel = job, job.training, student, parallel
        self.provider, self.plan, self.device = provider, plan, device
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.losses, self.counters, self.cursor = build_losses(job.training), _Counters(), Cursor()
        self.optimizer = build_optimizer(student, self.settings)
        self.total = self.settings.max_steps
        if self.total is None and not plan.follows:
            self.total = max(1, round((self.settings.epochs or 0) * plan.epoch_batches))
        self.rate = build_schedule(self.settings, self.total or UNKNOWN_STEPS)
        if self.settings.compile:
            for block in model_blocks(student.model):
                block.compile(dynamic=True)

    def progress(self) -> float:
        """From 0 to 1."""
        if self.total:
            return self.counters.step / self.total
        return self.counters.epoch_progress / (self.settings.epochs or 1)

    def stopped(self) -> str | None:
        """Why the training is over."""
        if self.progress() >= 1:
            return "max_steps"
        patience = self.settings.patience
        return "patience" if patience and self.counters.worse >= patience else None

    def evaluation_due(self) -> bool:
        every = self.settings.evaluate_every
        if self.settings.evaluate_unit == "steps":
            due = self.counters.step % int(every) == 0
        else:
            due = math.floor(self.counters.epoch_progress / every + 1e-9) > math.floor(
                self.counters.judged_epoch_progress / every + 1e-9
            )
        return due or self.progress() >= 1

    def step(self, batch: GlobalBatch) -> dict[str, float]:
        """One optimizer step; returns the global batch's loss, its terms, the gradient's norm and the learning rate.

        Every term is divided once, by what the global batch of all workers comes to. Workers' gradients are averaged
        by what runs them in parallel, so each multiplies by their number.
        """
        mixed = hash((self.job.seed, self.counters.step, self.rank)) & 0x7FFFFFFF
        torch.manual_seed(mixed)  # dropout: so that a resumed training draws what it would have drawn
        rate = self.settings.learning_rate * self.rate(self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.parallel.train()
        sides = [self.provider.side(micro) for micro in batch.micros]
        easy, denominators = self._denominators(batch, sides)
        sums = torch.zeros(1 + len(denominators), dtype=torch.float64, device=self.device)
        for number, (micro, side) in enumerate(zip(batch.micros, sides, strict=True)):
            with self._sync(number + 1 == len(batch.micros)):
                group = None if easy[number] is None else easy[number].to(self.device)
                result = self._forward(micro, side, self.losses, denominators, group)
                (result.total * self.world).backward()
            terms = [result.terms[name].sum for name in denominators]
            sums += torch.stack([result.total.detach(), *terms]).double()
        if self.world > 1:
            dist.all_reduce(sums)
        loss, *terms = sums.tolist()
        if not math.isfinite(loss):
            self._refuse(batch, f"the loss is {loss}")
        norm = torch.nn.utils.clip_grad_norm_(self.parallel.parameters(), self.settings.max_grad_norm)
        norm = float(getattr(norm, "full_tensor", lambda: norm)())
        if not math.isfinite(norm):
            self._refuse(batch, f"the gradient's norm is {norm}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.cursor = batch.next
        means = {name: s / max(float(d), 1e-9) for (name, d), s in zip(denominators.items(), terms, strict=True)}
        named = means if len(means) > 1 else {}
        return {"loss": loss, **named, "learning_rate": rate, "gradient_norm": norm}

    def _forward(
        self, micro: MicroBatch, side: Side | None, losses: Any, denominators: Any, easy: Any, call: Any = None
    ) -> Any:
        tensors = {name: tensor.to(self.device, non_blocking=True) for name, tensor in micro.inputs.items()}
        weights = None if micro.weights_K is None else micro.weights_K.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            return (call or self.parallel)(
                tensors,
                micro.labels_BT.to(self.device),
                losses,
                teacher=side,
                weights_N=weights,
                denominators=denominators,
                easy_mask_N=easy,
            )

    def _denominators(self, batch: GlobalBatch, sides: list[Side | None]) -> tuple[list[Any], dict[str, float]]:
        """atkd's groups of each micro-batch, and of every term what the global batch's weights come to."""
        found = {loss.name: batch.weight for loss in self.losses if loss.kind != "atkd"}
        if "atkd" not in self.settings.losses:
            return [None] * len(sides), found
        uncertain = [self._uncertainty(m, s) for m, s in zip(batch.micros, sides, strict=True)]
        easy = self._easy(uncertain)
        counts = torch.zeros(2, dtype=torch.float64)
        for micro, group in zip(batch.micros, easy, strict=True):
            weights = torch.ones(len(group)) if micro.weights_K is None else micro.weights_K
            counts += torch.stack([weights.double()[group].sum(), weights.double()[~group].sum()])
        if self.world > 1:
            counts = counts.to(self.device)
            dist.all_reduce(counts)
        return easy, found | dict(zip(("atkd_easy", "atkd_hard"), counts.tolist(), strict=True))

    def _uncertainty(self, micro: MicroBatch, side: Any) -> torch.Tensor:
        labels_K = micro.labels_BT[micro.labels_BT != IGNORE].to(self.device)
        return teacher_uncertainty(side, labels_K, self.student.columns).cpu() if len(labels_K) else torch.zeros(0)

    def _easy(self, mine: list[torch.Tensor]) -> list[torch.Tensor]:
        """ATKD's easy tokens, told from the hard ones over all that every worker gives."""
        own = torch.cat([torch.zeros(0, dtype=torch.float64), *(one.double() for one in mine)])
        everyone = from_all_workers(own)
        share = next(loss.hard_share for loss in self.losses if loss.kind == "atkd")
        easy = divergences.easy_tokens(torch.cat(everyone), share)
        start = sum(len(one) for one in everyone[: self.rank])
        return list(easy[start : start + len(own)].split([len(one) for one in mine])) if mine else []

    def _sync(self, last: bool) -> Any:
        """Gradients go between workers with the last micro-batch alone."""
        if isinstance(self.parallel, DistributedDataParallel):
            return nullcontext() if last else self.parallel.no_sync()
        if hasattr(self.parallel, "set_requires_gradient_sync"):
            self.parallel.set_requires_gradient_sync(last)
        return nullcontext()

    def _refuse(self, batch: GlobalBatch, what: str) -> None:
        named = ", ".join(batch.found.id(int(batch.found.row_of[i])) for i in batch.targets[:8])
        more = " ..." if batch.rows > 8 else ""
        at = f"{what} at step {self.counters.step + 1}"
        raise TrainingError(f"{self.job.name}: {at}; {batch.rows} rows in the batch: {named}{more}")

    # ---------------------------------------------------------------------------------------- judging

    def judge(self, cutter: BatchSharder, tokenizer: Any) -> dict[str, float]:
        """The dev loss and metrics; counts towards patience where they are no better than the best."""
        self.parallel.eval()
        found = {"dev_loss": self._dev_loss(cutter)}
        if self.settings.dev_metrics:
            found |= self._answered(cutter, tokenizer)
        loss, counters = found["dev_loss"], self.counters
        if not math.isfinite(loss):
            raise TrainingError(f"{self.job.name}: the dev loss is {loss} at step {counters.step}")
        by = self.settings.choose_by if self.settings.choose_by in found else "dev_loss"
        score = -found[by] if metrics.lower_is_better(by) else found[by]
        if score > counters.best:
            counters.best, counters.best_loss, counters.best_step, counters.worse = score, loss, counters.step, 0
        else:
            counters.worse += 1
        counters.judged_epoch_progress = counters.epoch_progress
        return found

    @torch.no_grad()
    def _dev_loss(self, cutter: BatchSharder) -> float:
        """The training loss of the dev rows; of rows of which the teacher's side is not known, cross entropy."""
        known = self.job.dev is None or not isinstance(self.settings.teacher, StoredOutputs)
        plain = "mse" if self.student.task == "regression" else "cross_entropy"
        losses = self.losses if known else [TokenLoss(plain)]
        provider = self.provider if known else NoTeacher()
        sums: dict[str, torch.Tensor] = {}
        factors: dict[str, float] = {}
        for loss in losses:
            factors |= {n: f for n, (f, _) in loss.parts(torch.ones(0), torch.ones(0, dtype=torch.bool)).items()}
        easy = None
        if "atkd_easy" in factors:
            uncertain = []
            for micro in dev_micro_batches(*self.plan.dev, cutter):
                provider.prepare(micro)
                uncertain.append(self._uncertainty(micro, provider.side(micro)))
            easy = self._easy(uncertain)
        for number, micro in enumerate(dev_micro_batches(*self.plan.dev, cutter)):
            provider.prepare(micro)
            group = easy[number].to(self.device) if easy else None
            result = self._forward(micro, provider.side(micro), losses, None, group, unwrapped(self.parallel))
            for name in factors:
                term = torch.stack([x.double() for x in result.terms[name]])
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
        totals = [sums.get(name, torch.zeros(2, dtype=torch.float64, device=self.device)) for name in factors]
        both = torch.stack(totals)
        if self.world > 1:
            dist.all_reduce(both)
        return sum(f * (s / max(d, 1e-9)) for f, (s, d) in zip(factors.values(), both.tolist(), strict=True))

    @torch.no_grad()
    def _answered(self, cutter: BatchSharder, tokenizer: Any) -> dict[str, float]:
        """Metrics of the answers to the first dev rows, against their targets; greedy ones of a model that writes."""
        found, targets = self.plan.dev
        targets = targets[: self.settings.dev_answer_rows]
        if self.student.task != "generation":
            return self._told(found, targets, tokenizer)
        model, pad = self.student.model, tokenizer.pad_token_id
        pieces = batches.by_length(found.source_lengths[found.row_of[targets]].tolist(), self.settings.batch_tokens)
        mine, answers = pieces[self.rank :: self.world], {}
        rounds = -(-len(pieces) // self.world)
        for number in range(rounds):
            piece = mine[number] if number < len(mine) else pieces[0]
            sources = [found.source(int(found.row_of[i])) for i in targets[piece]]
            side = batches.pad_right if not self.student.causal else batches.pad_left
            tensors = {n: t.to(self.device) for n, t in side(sources, pad).items()}
            written = model.generate(
                **tensors,
                max_new_tokens=self.settings.dev_answer_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=pad,
                eos_token_id=tokenizer.eos_token_id,
                synced_gpus=cutter.equal and self.world > 1,
            )
            texts = tokenizer.batch_decode(
                written[:, tensors["input_ids"].shape[1] :] if self.student.causal else written,
                skip_special_tokens=True,
            )
            if number < len(mine):
                answers |= dict(zip(piece.tolist(), texts, strict=True))
        whole = {place: text for part in from_all_workers(answers) for place, text in part.items()}
        right = [
            [text]
            for text in tokenizer.batch_decode([found.target(i).tolist() for i in targets], skip_special_tokens=True)
        ]
        texts = [whole[i].strip() for i in range(len(targets))]
        return self._scores(texts, [[r.strip() for r in one] for one in right])

    def _told(self, found: EncodedDataset, targets: Any, tokenizer: Any) -> dict[str, float]:
        """`_answered` of an encoder's head; every worker answers everything."""
        task, labels, sources = self.student.task, self.job.student.labels, {}
        texts: dict[int, str] = {}
        for piece in batches.by_length(
            found.source_lengths[found.row_of[targets]].tolist(), self.settings.batch_tokens
        ):
            sources = [found.source(int(found.row_of[i])) for i in targets[piece]]
            said = task_heads.answers(self.student.model, task, sources, tokenizer.pad_token_id)
            for place, source, (numbers, _) in zip(piece.tolist(), sources, said, strict=True):
                texts[place] = task_heads.text(task, labels, tokenizer, source, numbers)
        right = [
            [task_heads.text(task, labels, tokenizer, found.source(int(found.row_of[i])), found.target(int(i)))]
            for i in targets
        ]
        answers = [texts[i] for i in range(len(targets))]
        return self._scores(answers, right)

    def _scores(self, answers: list[str], right: list[list[str]]) -> dict[str, float]:
        """The dev metrics, without those that find nothing to score in what is right, such as no slot."""
        found = {}
        for name in self.settings.dev_metrics:
            with suppress(DataError):
                found[name] = metrics.get(name)(answers, right)
        return found


def _log(job: TrainingSpec, step: int) -> Log:
    settings = {"model": job.model.model_dump(mode="json"), "training": job.training.model_dump(mode="json")}
    return Log(Path(job.folder), step, job.name, {**settings, "seed": job.seed}, job.trackers)


def _checkpoint(run: TrainingRun, report: Callable[[dict, Path], None], rank: int, metrics: dict) -> None:
    try:
        folder = Path(tempfile.mkdtemp(prefix=CHECKPOINT, dir=run.job.folder))
    except OSError as error:
        raise TrainingError(f"{run.job.folder}: the checkpoint cannot be written: {error.strerror}") from None
    try:
        cursor = {**vars(run.counters), "cursor": list(run.cursor)}
        save_checkpoint(folder, unwrapped(run.parallel), run.optimizer, cursor, rank)
        report(metrics, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
