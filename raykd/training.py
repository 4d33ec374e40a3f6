"""The loop: one for every student and every fine-tuned teacher.

It knows neither Ray nor recipes' files: `train` is a function of a job, given back what a checkpoint holds, that
calls `report` whenever there is something worth keeping. Its trajectory depends on the job alone: not on the number
of workers, on micro-batches, or on how often it was interrupted.
"""

from __future__ import annotations

import importlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from raykd import batches, checkpoints, encoded, heads, metrics, models, remote, teaching
from raykd.encoded import Set
from raykd.errors import DataError, ModelError, RecipeError, TrainingError
from raykd.loading import Batch, Cursor, Cutter, Encoding, Lengths, Loader, Micro, Plan, each
from raykd.losses import divergences
from raykd.losses.teachers import Side
from raykd.losses.tokens import IGNORE, Kind, TokenLoss, teacher_uncertainty
from raykd.recipe import LOSSES, FromConfig, FromStore, InProcess, Loss, Model, Tracker, Training
from raykd.run import fingerprint
from raykd.students import Student
from raykd.trackers import Log

CHECKPOINT = ".checkpoint-"  # folders of checkpoints that are being written
LOG_EVERY = 10  # steps between lines of log.jsonl
UNKNOWN_STEPS = 10_000  # what a schedule is drawn over where the number of steps is not known from the start


@dataclass(frozen=True)
class Job:
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
    source: encoded.Rows | tuple[encoded.Stored, ...]
    dev: encoded.Rows | None
    student: encoded.Reading
    folder: str
    tokens: str
    marks: tuple[str, str]
    seed: int
    threads: int
    teacher: encoded.Reading | None = None
    max_bad_rows: int = 0
    parallel: str = "data"
    run: str = ""
    trackers: tuple[Tracker, ...] = ()


def needs(job: Job) -> list[str]:
    """Files and folders that a training reads, beside its own folder."""
    found = [job.tokenizer, job.student.tokenizer, *([job.teacher.tokenizer] if job.teacher else [])]
    found += [job.model.path] if not isinstance(job.model, FromConfig) else []
    for source in [*(job.source if isinstance(job.source, tuple) else [job.source]), *([job.dev] if job.dev else [])]:
        if isinstance(source, encoded.Rows):
            found.append(source.path)
        else:
            found += [str(Path(source.prompts).parent), *([source.gold] if source.gold else [])]
    return found


def train(
    job: Job,
    report: Callable[[dict, Path], None],
    resume: Path | None = None,
    scorer: teaching.Scorer | None = None,
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
    tokenizer = models.load_tokenizer(job.tokenizer, task == "generation")
    columns = _columns(job, tokenizer)
    student = Student(_model(job, tokenizer), columns, task).to(device)
    lengths = Lengths(not student.causal or task != "generation", task)
    encodings = _encodings(job, rank)
    provider = _provider(job, scorer, device, columns)
    parallel = _parallel(student, job.parallel, device, world)
    plan = Plan(encodings[0], job.training, job.seed, lengths.sides, _chunks(job), encodings[1])
    teacher_pad = None
    if job.teacher and _reads_along(job.training):
        teacher_pad = models.load_tokenizer(job.teacher.tokenizer, task == "generation").pad_token_id
    equal = job.parallel == "fsdp"
    cutter = Cutter(rank, world, job.training, lengths, tokenizer.pad_token_id, teacher_pad, equal)
    run = _Run(job, student, parallel, provider, plan, device)
    if resume:
        run.cursor = Cursor(*run.counters.load(checkpoints.load(resume, parallel_root(parallel), run.optimizer)))
    log: Any = nullcontext() if rank else _log(job, run.counters.step)
    with log, Loader(plan, cutter, run.cursor, provider.prepare) as loaded:
        if resume and _agree(not (Path(job.folder) / "model").exists()):  # it outlived the folder, or is another's
            run.counters.best, run.counters.worse = -math.inf, 0
            judged = run.judge(cutter, tokenizer)
            if rank == 0:
                log.write(run.counters.step, judged)
            checkpoints.export(Path(job.folder) / "model", student, tokenizer, rank)
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
                    checkpoints.export(Path(job.folder) / "model", student, tokenizer, rank)
                counts = {"examples": run.counters.examples, "tokens": run.counters.tokens}
                about = {"step": run.counters.step, "progress": 100 * run.progress(), **counts}
                _checkpoint(run, report, rank, {**about, **judged})
    return _result(job, run, encodings, plan)


def _result(job: Job, run: _Run, encodings: tuple[Encoding, Encoding | None], plan: Plan) -> dict:
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


# ------------------------------------------------------------------------------------------- setting up


def _model(job: Job, tokenizer: Any) -> Any:
    settings = job.training
    model = models.load(
        job.model, tokenizer, job.student.task, list(job.student.labels) if job.student.labels else None
    )
    if settings.precision == "float64":
        model.double()
    if settings.lora:
        model = models.with_lora(model, settings.lora)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if settings.lora:
            model.enable_input_require_grads()
    return model


def _columns(job: Job, tokenizer: Any) -> int | None:
    """How many tokens student and teacher share; None where no loss compares them. Raises ModelError."""
    if not job.training.needs_teacher():
        return None
    if job.teacher is None:
        raise ModelError(f"{job.name}: {_needy(job.training)} needs a teacher, and these rows have none")
    if job.student.task != "generation":
        if (
            models.tokenizer_mark(job.tokenizer) != models.tokenizer_mark(job.teacher.tokenizer)
            and job.student.task == "span"
        ):
            raise ModelError(f"{job.name}: spans are places in a prompt: student and teacher need the same tokenizer")
        return None
    return models.shared_columns(tokenizer, models.load_tokenizer(job.teacher.tokenizer))


def _needy(training: Training) -> str:
    return next(f"losses.{name}" for name in training.losses if name in LOSSES and name != "cross_entropy")


def _parallel(student: Student, how: str, device: torch.device, world: int) -> Any:
    """The student as every worker calls it: alone, data parallel, or in parts (FSDP2)."""
    blocks = models.blocks(student.model)
    if how == "fsdp" and dist.is_initialized():
        mesh = dist.device_mesh.init_device_mesh(device.type, (world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(student, mesh=mesh)
    return DistributedDataParallel(student) if world > 1 else student


def parallel_root(parallel: Any) -> Student:
    """The student inside what `_parallel` made of it."""
    return parallel.module if isinstance(parallel, DistributedDataParallel) else parallel


def _chunks(job: Job) -> int | None:
    """How many chunks a stream will have that the first epoch follows."""
    if isinstance(job.source, encoded.Rows) or not job.source[0].follow:
        return None
    return len(encoded.chunks_of(job.source[0]))


def _encodings(job: Job, rank: int) -> tuple[Encoding, Encoding | None]:
    """Encoded rows, and encoded dev rows."""
    settings = job.training
    rules = (settings.max_input_tokens, settings.max_target_tokens, settings.long_targets, settings.empty_targets)
    limits = encoded.Limits(job.name, *rules, job.max_bad_rows)
    first = 0
    if remote.url(job.tokens):  # of this machine, which has a folder of its own
        machines = _everyones(remote.machine())
        first = machines.index(machines[rank])

    def agree(value: Any) -> Any:
        return _everyones(value)[first]

    def one(source: encoded.Rows | tuple[encoded.Stored, ...], mark: str) -> Encoding:
        also = job.teacher if _reads_along(settings) else None
        readers = [job.student, *([also] if also else [])]
        names = [models.tokenizer_mark(r.tokenizer) for r in readers]
        places = {"path": None, "prompts": None, "store": None, "follow": None}
        how = [{**vars(part), **places} for part in ([source] if isinstance(source, encoded.Rows) else source)]
        shown = [
            [str(r.prompt), [s.input for s in r.shots], [s.target for s in r.shots], r.encoder, r.task, r.labels]
            for r in readers
        ]
        path = Path(job.tokens) / f"{fingerprint([mark, names, shown, rules, how])}.arrow"
        return Encoding(path, rank == first, lambda part: encoded.write(part, source, job.student, also, limits), agree)

    return one(job.source, job.marks[0]), one(job.dev, job.marks[1]) if job.dev else None


def _reads_along(settings: Training) -> bool:
    return settings.needs_teacher() and not isinstance(settings.teacher, FromStore)


def _agree(value: Any) -> Any:
    """The first worker's value, on every worker."""
    return _everyones(value)[0]


def _everyones(value: Any) -> list[Any]:
    """The values of all workers, by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _provider(job: Job, scorer: teaching.Scorer | None, device: torch.device, columns: int | None) -> teaching.Provider:
    settings = job.training
    if not settings.needs_teacher():
        return teaching.Nobody()
    assert job.teacher is not None
    if isinstance(settings.teacher, InProcess):
        return teaching.InProcess(job.teacher, settings.teacher.dtype, device, columns)
    if not isinstance(settings.teacher, FromStore):
        if scorer is None:
            raise TrainingError(f"{job.name}: training.teacher: kind actors needs a cluster")
        return teaching.Asked(scorer, settings.teacher.tail, device)
    payload = None if isinstance(job.source, encoded.Rows) else job.source[0].payload
    if payload is None or payload.kind == "text":
        found = payload.kind if payload else "texts"
        raise RecipeError(f"{job.name}: {_needy(settings)} needs the teacher's side, and the rows are {found}")
    head = teaching.head_of(job.teacher.tokenizer, device, columns) if payload.kind == "hidden" else None
    return teaching.FromStore(payload, settings.teacher.tail, head, device)


def _losses(settings: Training) -> list[TokenLoss]:
    def one(name: str, loss: Loss) -> TokenLoss:
        kind: Any = name
        if ":" in name:  # a user's own
            module, _, function = name.partition(":")
            kind = Kind(getattr(importlib.import_module(module), function), teacher=False, target=True)
        given = {field: value for field, value in loss.model_dump().items() if value is not None}
        return TokenLoss(kind, **given)

    return [one(name, loss) for name, loss in settings.losses.items()]


# -------------------------------------------------------------------------------------------- the steps


class _Counters:
    """How far a training is; saved with every checkpoint."""

    def __init__(self) -> None:
        self.step = self.tokens = self.examples = self.padded = self.real = self.best_step = self.worse = 0
        self.way = self.judged_way = self.seconds = self.waited = 0.0
        self.best_loss, self.best = math.inf, -math.inf

    def add(self, batch: Batch, seconds: float, waited: float) -> None:
        self.step, self.tokens, self.examples = self.step + 1, self.tokens + batch.tokens, self.examples + batch.rows
        self.padded, self.real = self.padded + batch.padded, self.real + batch.real
        self.way, self.seconds, self.waited = batch.way, self.seconds + seconds, self.waited + waited

    def numbers(self) -> dict[str, float]:
        rate = self.tokens / max(self.seconds, 1e-9)
        counts = {"epoch": self.way, "examples": self.examples, "tokens": self.tokens}
        return {**counts, "seconds": self.seconds, "tokens_per_second": rate}

    def load(self, held: dict[str, Any]) -> list[int]:
        """Take over saved ones; returns the cursor."""
        cursor = held.pop("cursor")
        vars(self).update(held)
        return cursor


class _Run:
    """A training that is under way: the student, its optimizer, and how far it is."""

    def __init__(self, job: Job, student: Student, parallel: Any, provider: teaching.Provider, plan: Plan, device: Any):
        self.job, self.settings, self.student, self.parallel = job, job.training, student, parallel
        self.provider, self.plan, self.device = provider, plan, device
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.losses, self.counters, self.cursor = _losses(job.training), _Counters(), Cursor()
        self.optimizer = _optimizer(student, self.settings)
        self.total = self.settings.max_steps
        if self.total is None and not plan.follows:
            self.total = max(1, round((self.settings.epochs or 0) * plan.epoch_batches))
        self.rate = _schedule(self.settings, self.total or UNKNOWN_STEPS)
        if self.settings.compile:
            for block in models.blocks(student.model):
                block.compile(dynamic=True)

    def progress(self) -> float:
        """From 0 to 1."""
        if self.total:
            return self.counters.step / self.total
        return self.counters.way / (self.settings.epochs or 1)

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
            due = math.floor(self.counters.way / every + 1e-9) > math.floor(self.counters.judged_way / every + 1e-9)
        return due or self.progress() >= 1

    def step(self, batch: Batch) -> dict[str, float]:
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
        self, micro: Micro, side: Side | None, losses: Any, denominators: Any, easy: Any, call: Any = None
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
                easy_N=easy,
            )

    def _denominators(self, batch: Batch, sides: list[Side | None]) -> tuple[list[Any], dict[str, float]]:
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

    def _uncertainty(self, micro: Micro, side: Any) -> torch.Tensor:
        labels_K = micro.labels_BT[micro.labels_BT != IGNORE].to(self.device)
        return teacher_uncertainty(side, labels_K, self.student.columns).cpu() if len(labels_K) else torch.zeros(0)

    def _easy(self, mine: list[torch.Tensor]) -> list[torch.Tensor]:
        """ATKD's easy tokens, told from the hard ones over all that every worker gives."""
        own = torch.cat([torch.zeros(0, dtype=torch.float64), *(one.double() for one in mine)])
        everyone = _everyones(own)
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

    def _refuse(self, batch: Batch, what: str) -> None:
        named = ", ".join(batch.found.id(int(batch.found.row_of[i])) for i in batch.targets[:8])
        more = " ..." if batch.rows > 8 else ""
        at = f"{what} at step {self.counters.step + 1}"
        raise TrainingError(f"{self.job.name}: {at}; {batch.rows} rows in the batch: {named}{more}")

    # ---------------------------------------------------------------------------------------- judging

    def judge(self, cutter: Cutter, tokenizer: Any) -> dict[str, float]:
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
        counters.judged_way = counters.way
        return found

    @torch.no_grad()
    def _dev_loss(self, cutter: Cutter) -> float:
        """The training loss of the dev rows; of rows of which the teacher's side is not known, cross entropy."""
        known = self.job.dev is None or not isinstance(self.settings.teacher, FromStore)
        plain = "mse" if self.student.task == "regression" else "cross_entropy"
        losses = self.losses if known else [TokenLoss(plain)]
        provider = self.provider if known else teaching.Nobody()
        sums: dict[str, torch.Tensor] = {}
        factors: dict[str, float] = {}
        for loss in losses:
            factors |= {n: f for n, (f, _) in loss.parts(torch.ones(0), torch.ones(0, dtype=torch.bool)).items()}
        easy = None
        if "atkd_easy" in factors:
            uncertain = []
            for micro in each(*self.plan.dev, cutter):
                provider.prepare(micro)
                uncertain.append(self._uncertainty(micro, provider.side(micro)))
            easy = self._easy(uncertain)
        for number, micro in enumerate(each(*self.plan.dev, cutter)):
            provider.prepare(micro)
            group = easy[number].to(self.device) if easy else None
            result = self._forward(micro, provider.side(micro), losses, None, group, parallel_root(self.parallel))
            for name in factors:
                term = torch.stack([x.double() for x in result.terms[name]])
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
        totals = [sums.get(name, torch.zeros(2, dtype=torch.float64, device=self.device)) for name in factors]
        both = torch.stack(totals)
        if self.world > 1:
            dist.all_reduce(both)
        return sum(f * (s / max(d, 1e-9)) for f, (s, d) in zip(factors.values(), both.tolist(), strict=True))

    @torch.no_grad()
    def _answered(self, cutter: Cutter, tokenizer: Any) -> dict[str, float]:
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
        whole = {place: text for part in _everyones(answers) for place, text in part.items()}
        right = [
            [text]
            for text in tokenizer.batch_decode([found.target(i).tolist() for i in targets], skip_special_tokens=True)
        ]
        texts = [whole[i].strip() for i in range(len(targets))]
        return self._scores(texts, [[r.strip() for r in one] for one in right])

    def _told(self, found: Set, targets: Any, tokenizer: Any) -> dict[str, float]:
        """`_answered` of an encoder's head; every worker answers everything."""
        task, labels, sources = self.student.task, self.job.student.labels, {}
        texts: dict[int, str] = {}
        for piece in batches.by_length(
            found.source_lengths[found.row_of[targets]].tolist(), self.settings.batch_tokens
        ):
            sources = [found.source(int(found.row_of[i])) for i in targets[piece]]
            said = heads.answers(self.student.model, task, sources, tokenizer.pad_token_id)
            for place, source, (numbers, _) in zip(piece.tolist(), sources, said, strict=True):
                texts[place] = heads.text(task, labels, tokenizer, source, numbers)
        right = [
            [heads.text(task, labels, tokenizer, found.source(int(found.row_of[i])), found.target(int(i)))]
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


def _optimizer(student: Student, settings: Training) -> torch.optim.AdamW:
    """AdamW; vectors and norms do not decay."""
    named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if p.ndim < 2 or "norm" in n.lower()]
    decayed = [p for n, p in named if not (p.ndim < 2 or "norm" in n.lower())]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, fused=True)


def _schedule(settings: Training, steps: int) -> Callable[[float], float]:
    """The learning rate's factor by progress, of a schedule of transformers over so many steps. Raises RecipeError."""
    drawn = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        made: Any = get_scheduler(
            settings.schedule,
            drawn,
            round(settings.warmup_ratio * steps),
            steps,
            scheduler_specific_kwargs=settings.schedule_options or None,
        )
        factor = made.lr_lambdas[0]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise RecipeError(f"training.schedule {settings.schedule!r}: {str(error).splitlines()[0]}") from None
    return lambda progress: factor(progress * steps)


# --------------------------------------------------------------------------------------- what is kept


def _log(job: Job, step: int) -> Log:
    settings = {"model": job.model.model_dump(mode="json"), "training": job.training.model_dump(mode="json")}
    return Log(Path(job.folder), step, job.name, {**settings, "seed": job.seed}, job.trackers)


def _checkpoint(run: _Run, report: Callable[[dict, Path], None], rank: int, metrics: dict) -> None:
    try:
        folder = Path(tempfile.mkdtemp(prefix=CHECKPOINT, dir=run.job.folder))
    except OSError as error:
        raise TrainingError(f"{run.job.folder}: the checkpoint cannot be written: {error.strerror}") from None
    try:
        cursor = {**vars(run.counters), "cursor": list(run.cursor)}
        checkpoints.save(folder, parallel_root(run.parallel), run.optimizer, cursor, rank)
        report(metrics, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
