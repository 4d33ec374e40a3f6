"""The loop: one for every student and every fine-tuned teacher.

It knows neither Ray nor recipes' files: `train` is a function of a job, given back what a checkpoint holds, that
calls `report` whenever there is something worth keeping.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from raykd import batches, models
from raykd.errors import DataError, TrainingError
from raykd.losses.tokens import IGNORE, Kind, TokenLoss, token_losses
from raykd.recipe import Checkpoint, FromConfig, Training
from raykd.run import replaced

LOG_EVERY = 10  # steps between lines of log.jsonl


class Pair(NamedTuple):
    """An encoded row."""

    id: str
    source: list[int]
    target: list[int]

    @property
    def size(self) -> int:
        return len(self.source) + len(self.target)


@dataclass(frozen=True)
class Job:
    """One training: a model, rows of {id, input, target} where input is the rendered prompt, and where to put it."""

    name: str
    model: Checkpoint | FromConfig
    tokenizer: str
    training: Training
    rows: str
    dev_rows: str | None
    folder: str
    seed: int
    threads: int
    max_bad_rows: int = 0
    special_tokens: bool = True  # add the tokenizer's own to inputs; a chat template has written them already


def train(job: Job, report: Callable[[dict, Path | None], None], resume: Path | None = None) -> dict:
    """Train to the end; returns {model, steps, best_step, dev_loss, stopped, bad_rows, stats}.

    The model with the best dev loss is written to `<folder>/model` as a Hugging Face folder; metrics go to
    `<folder>/log.jsonl`. `report(metrics, checkpoint_folder)` is called by every worker at every evaluation; the
    folder is None except on the first worker. Raises TrainingError for a loss that is not finite, ModelError and
    DataError for what does not fit.
    """
    torch.set_num_threads(job.threads)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(job.seed)
    tokenizer = models.load_tokenizer(job.tokenizer)
    model: Any = models.load(job.model, tokenizer)
    model.to(device)
    causal = not model.config.is_encoder_decoder
    pairs, dev, bad = _pairs(job, tokenizer, causal)
    state = _State(job, model, pairs)
    if resume:
        state.load(resume)
    parallel = DistributedDataParallel(model) if world > 1 else model
    with _Log(Path(job.folder) / "log.jsonl", state.step, rank) as log:
        for batch in state.batches():
            rate = float(state.schedule.get_last_lr()[0])
            mine = [pairs[i] for i in batch[rank::world]]
            loss, tokens = _step(parallel, state, mine or [pairs[batch[0]]], bool(mine), device, tokenizer, causal)
            if not math.isfinite(loss):
                named = ", ".join(pairs[i].id for i in batch[:8]) + (" ..." if len(batch) > 8 else "")
                at = f"the loss is {loss} at step {state.step + 1}"
                raise TrainingError(f"{job.name}: {at}; {len(batch)} rows in the batch: {named}")
            state.advance(tokens)
            log.step(state, loss, rate)
            if state.step % job.training.evaluate_every == 0 or state.finished():
                dev_loss = _dev_loss(model, dev, job, device, tokenizer, causal, rank, world)
                state.judge(dev_loss)
                log.dev(state, dev_loss)
                _checkpoint(state, report, rank, {"step": state.step, "loss": loss, "dev_loss": dev_loss})
    if rank == 0:
        assert state.best is not None  # the last step is always judged
        model.load_state_dict(state.best)
        with replaced(Path(job.folder) / "model") as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return {
        "model": str(Path(job.folder) / "model"),
        "steps": state.step,
        "best_step": state.best_step,
        "dev_loss": state.best_loss,
        "stopped": state.stopped(),
        "bad_rows": bad,
        "stats": {
            "rows": len(pairs),
            "dev_rows": len(dev),
            "tokens": state.tokens,
            "seconds": state.seconds,
            "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
            "parameters": sum(p.numel() for p in model.parameters()),
            "threads": torch.get_num_threads(),
            "workers": world,
        },
    }


def _step(parallel, state, rows, counted, device, tokenizer, causal) -> tuple[float, int]:
    """One optimizer step; returns the loss of the global batch and its target tokens.

    The denominator is that of all workers, and the loss is multiplied by their number because data parallel
    training averages gradients: so a step does not depend on how its batch was cut.
    """
    tensors = {k: v.to(device) for k, v in _collate(rows, tokenizer, causal).items()}
    labels = tensors.pop("labels")
    if not counted:  # fewer rows than workers: this one takes part with nothing to say
        labels = torch.full_like(labels, IGNORE)
    parallel.train()
    with torch.autocast(device.type, torch.bfloat16, enabled=state.job.training.precision == "bfloat16"):
        logits = _logits(parallel, tensors, labels, tokenizer.pad_token_id, causal)
    world = dist.get_world_size() if dist.is_initialized() else 1
    count = (labels != IGNORE).sum()
    if world > 1:
        dist.all_reduce(count)
    total = _loss(state.loss, logits, labels, count)
    state.optimizer.zero_grad(set_to_none=True)
    (total * world).backward()
    whole = total.detach().double()
    if world > 1:
        dist.all_reduce(whole)
    loss = whole.item()
    if math.isfinite(loss):
        torch.nn.utils.clip_grad_norm_(parallel.parameters(), state.job.training.max_grad_norm)
        state.optimizer.step()
        state.schedule.step()
    return loss, int(count.item())


def _collate(pairs: list[Pair], tokenizer, causal: bool) -> dict[str, torch.Tensor]:
    return batches.collate([p.source for p in pairs], [p.target for p in pairs], tokenizer.pad_token_id, causal)


def _logits(model, tensors, labels, pad, causal) -> torch.Tensor:
    """Logits aligned with the labels: one position per label, for both kinds of model."""
    if causal:
        return model(**tensors).logits
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    start = torch.full_like(labels[:, :1], plain.config.decoder_start_token_id)
    previous = torch.cat([start, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, pad)], dim=1)
    return model(**tensors, decoder_input_ids=previous).logits


@torch.no_grad()
def _dev_loss(model, dev, job, device, tokenizer, causal, rank, world) -> float:
    """Mean loss per target token of the dev rows, over all workers."""
    model.eval()
    loss = _token_loss(job.training.loss)
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches.by_length([pair.size for pair in dev], job.training.batch_tokens)[rank::world]:
        tensors = {k: v.to(device) for k, v in _collate([dev[i] for i in batch], tokenizer, causal).items()}
        labels = tensors.pop("labels")
        logits = _logits(model, tensors, labels, tokenizer.pad_token_id, causal)
        total += torch.tensor([_loss(loss, logits, labels, 1).item(), (labels != IGNORE).sum().item()])
    if world > 1:
        total = total.to(device)
        dist.all_reduce(total)
    return (total[0] / total[1]).item()


class _State:
    """What a checkpoint holds: weights, optimizer, schedule, cursor, random state, the best so far."""

    def __init__(self, job: Job, model, pairs: list[Pair]):
        settings = job.training
        self.job, self.model, self.loss = job, model, _token_loss(settings.loss)
        sides = model.config.is_encoder_decoder  # each is padded on its own
        self.lengths = np.array([[len(p.source), len(p.target)] if sides else [p.size] for p in pairs])
        self.epoch_steps = len(self._plan(0))
        self.total = settings.max_steps or max(1, round((settings.epochs or 0) * self.epoch_steps))
        plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "norm" in n.lower()]
        decayed = [p for n, p in model.named_parameters() if not (p.ndim < 2 or "norm" in n.lower())]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        warmup = round(settings.warmup_ratio * self.total)
        self.schedule = get_scheduler(settings.schedule, self.optimizer, warmup, self.total)
        self.step = self.epoch = self.at = self.tokens = self.best_step = self.worse = 0
        self.best_loss, self.best, self.seconds = math.inf, None, 0.0
        self.clock = time.monotonic()

    def _plan(self, epoch: int) -> list[np.ndarray]:
        return batches.plan(self.lengths, self.job.training.batch_tokens, self.job.seed, epoch)

    def batches(self) -> Iterator[np.ndarray]:
        """Global batches from the cursor on, epoch after epoch, until it is time to stop."""
        planned = self._plan(self.epoch)
        while not self.stopped():
            if self.at == len(planned):
                self.epoch, self.at = self.epoch + 1, 0
                planned = self._plan(self.epoch)
            yield planned[self.at]
            self.at += 1

    def advance(self, tokens: int) -> None:
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def finished(self) -> bool:
        return self.step >= self.total

    def judge(self, dev_loss: float) -> None:
        """Keep the weights if they are the best so far; otherwise count towards patience."""
        if not math.isfinite(dev_loss):
            raise TrainingError(f"{self.job.name}: the dev loss is {dev_loss} at step {self.step}")
        if dev_loss < self.best_loss:
            self.best_loss, self.best_step, self.worse = dev_loss, self.step, 0
            self.best = {k: v.detach().to("cpu", copy=True) for k, v in self.model.state_dict().items()}
        else:
            self.worse += 1

    def stopped(self) -> str | None:
        if self.finished():
            return "max_steps"
        patience = self.job.training.patience
        return "patience" if patience and self.worse >= patience else None

    _counters = ("step", "epoch", "at", "tokens", "best_step", "worse", "best_loss", "seconds")

    def save(self, folder: Path) -> None:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        counters = {name: getattr(self, name) for name in self._counters}
        counters["at"] += 1  # the batch at the cursor is done
        held = {"model": self.model.state_dict(), "best": self.best, "optimizer": self.optimizer.state_dict()}
        held |= {
            "schedule": self.schedule.state_dict(),
            "counters": counters,
            "cpu": torch.get_rng_state(),
            "cuda": cuda,
        }
        torch.save(held, folder / "state.pt")

    def load(self, folder: Path) -> None:
        held = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        self.model.load_state_dict(held["model"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.schedule.load_state_dict(held["schedule"])
        self.best = held["best"]
        torch.set_rng_state(held["cpu"])
        if held["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(held["cuda"])
        for name, value in held["counters"].items():
            setattr(self, name, value)


class _Log:
    """`log.jsonl` of a training, written by the first worker; a resumed training drops what it will write again."""

    def __init__(self, path: Path, step: int, rank: int):
        self.file = None
        if rank:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                kept += [line] if json.loads(line)["step"] <= step else []
            except ValueError:
                continue  # the line a kill cut short
        self.file = open(path, "w", encoding="utf-8", buffering=1)
        self.file.writelines(line + "\n" for line in kept)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *error) -> None:
        if self.file:
            self.file.close()

    def step(self, state: _State, loss: float, learning_rate: float) -> None:
        if self.file and (state.step % LOG_EVERY == 0 or state.finished()):
            line = {"step": state.step, "loss": loss, "learning_rate": learning_rate, "tokens": state.tokens}
            self.file.write(json.dumps({**line, "seconds": state.seconds}) + "\n")

    def dev(self, state: _State, loss: float) -> None:
        if self.file:
            self.file.write(json.dumps({"step": state.step, "dev_loss": loss}) + "\n")


def _checkpoint(state: _State, report, rank: int, metrics: dict) -> None:
    if rank:
        report(metrics, None)
        return
    folder = Path(state.job.folder) / f".checkpoint-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        state.save(folder)
        report(metrics, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _loss(loss: TokenLoss, logits_BTV: torch.Tensor, labels_BT: torch.Tensor, over: torch.Tensor | int) -> torch.Tensor:
    """The sum over counted positions, divided by `over`."""
    return token_losses([loss], logits_BTV.flatten(0, 1), labels_BT.flatten(), denominators={loss.name: over}).total


def _token_loss(name: str) -> TokenLoss:
    """A loss by its name, or a user's module:function (student_NV, at_N) -> values_N."""
    if ":" in name:
        module, function = name.split(":")
        return TokenLoss(Kind(getattr(importlib.import_module(module), function), teacher=False, target=True))
    return TokenLoss(name)


def _pairs(job: Job, tokenizer, causal: bool) -> tuple[list[Pair], list[Pair], list[str]]:
    """Encoded training and dev pairs, and what was left out; without dev rows a share of the rows, by the seed."""
    pairs, bad = _encode(job, job.rows, tokenizer, causal)
    if job.dev_rows:
        dev, bad_dev = _encode(job, job.dev_rows, tokenizer, causal)
        bad += bad_dev
    else:
        order = np.random.default_rng([job.seed, 17]).permutation(len(pairs))
        held = max(1, round(job.training.holdout * len(pairs)))
        pairs, dev = [pairs[i] for i in sorted(order[held:])], [pairs[i] for i in sorted(order[:held])]
    if len(bad) > job.max_bad_rows:
        raise DataError(f"{job.name}: {bad[-1]} ({len(bad)} such rows, {job.max_bad_rows} tolerated)")
    if not pairs or not dev:
        raise DataError(f"{job.name}: {len(pairs)} rows to train on and {len(dev)} to judge by are too few")
    return pairs, dev, bad


def _encode(job: Job, path: str, tokenizer, causal: bool) -> tuple[list[Pair], list[str]]:
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    sources = models.encode_inputs(tokenizer, [r["input"] for r in rows], not causal, job.special_tokens)
    targets = models.encode_targets(tokenizer, [r["target"] for r in rows])
    pairs = [Pair(r["id"], s, t) for r, s, t in zip(rows, sources, targets, strict=True)]
    good, bad = [], []
    for pair in pairs:
        for side, limit in (("source", job.training.max_input_tokens), ("target", job.training.max_target_tokens)):
            if len(getattr(pair, side)) > limit:
                bad.append(f"row {pair.id}: {side} of {len(getattr(pair, side))} tokens, at most {limit}")
                break
        else:
            good.append(pair)
    return good, bad
