"""The feature losses of an optimizer step, exact over micro-batches and workers.

A feature loss is a function of sums over all tokens of the global batch. Where it is not linear (cross-correlation),
its gradient is taken at the global sums: these must be known before the first backward pass, so that several
micro-batches are read twice, at first without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from raykd.losses.loss import Draw, FeatureBatch, Loss
from raykd.training.workers import sum_over_workers

Sums = Mapping[str, Mapping[str, torch.Tensor]]  # by the name of a loss, its sums


def draw_of(seed: int, step: int) -> Draw:
    """The random generator of a step: each call returns a fresh one, the same on every worker."""
    return lambda: torch.Generator().manual_seed(hash((seed, step, 101)) & 0x7FFFFFFF)


def added(parts: Iterable[Sums]) -> dict[str, dict[str, torch.Tensor]]:
    """The sums of several micro-batches in one, without a gradient."""
    total: dict[str, dict[str, torch.Tensor]] = {}
    for part in parts:
        for loss, sums in part.items():
            of_loss = total.setdefault(loss, {})
            for name, value in sums.items():
                of_loss[name] = of_loss[name] + value.detach() if name in of_loss else value.detach().clone()
    return total


def features_over(losses: Sequence[Loss], batches: Sequence[FeatureBatch], own: Sums, draw: Draw) -> float:
    """The weighted sum of feature losses over this worker's batches and those of all others; `own` are their sums."""
    step = FeatureStep(losses, batches, draw)
    if step.waits:
        step.join(own)
    if losses:
        step.loss(own)
    return step.finish()


class FeatureStep:
    """The feature losses of one global batch.

    values  by name, each loss over the whole global batch; known after `join`, of linear losses after `finish`
    """

    def __init__(self, losses: Sequence[Loss], batches: Sequence[FeatureBatch], draw: Draw):
        """`batches` are this worker's micro-batches. All workers must call, `join` and `finish` as well."""
        self.losses, self.draw = {loss.name: loss for loss in losses}, draw
        self.curved = [loss.name for loss in losses if not loss.loss.linear]
        self.values: dict[str, torch.Tensor] = {}
        self.gradients: dict[str, dict[str, torch.Tensor]] = {}
        self._linear: list[Sums] = []  # of the micro-batches so far
        if not losses:
            return
        self.count = sum_over_workers(torch.stack([batch.weights_BS.sum() for batch in batches]).sum().double())
        for loss in losses:
            if loss.loss.linear:
                zero = {"sum": torch.zeros((), dtype=torch.float64, device=self.count.device)}
                self.gradients[loss.name] = self._gradient(loss, zero)

    @property
    def waits(self) -> bool:
        """Whether `join` must be called before `loss`."""
        return not all(name in self.gradients for name in self.curved)

    def read_twice(self, sums_of_micro_batch: Callable[[int], Sums], count: int) -> None:
        """Read `count` micro-batches without a gradient, and join their sums."""
        with torch.no_grad():
            self.join(added(map(sums_of_micro_batch, range(count))))

    def join(self, own: Sums) -> None:
        """Add this worker's sums of the losses that are not linear to those of all workers; take the gradients."""
        names = [(loss, name) for loss in self.curved for name in own[loss]]
        shapes = [own[loss][name].shape for loss, name in names]
        flat = sum_over_workers(torch.cat([own[loss][name].detach().double().flatten() for loss, name in names]))
        parts = flat.split([shape.numel() for shape in shapes])
        total: dict[str, dict[str, torch.Tensor]] = {}
        for (loss, name), part, shape in zip(names, parts, shapes, strict=True):
            total.setdefault(loss, {})[name] = part.view(shape)
        for name, sums in total.items():
            self.gradients[name] = self._gradient(self.losses[name], sums)

    def loss(self, sums: Sums) -> torch.Tensor:
        """A scalar with the gradient of all feature losses, weighted, with respect to a micro-batch's `sums`."""
        self._linear.append({name: sums[name] for name in sums if name not in self.curved})
        parts = [
            self.losses[name].weight * (self.gradients[name][part].to(value) * value).sum()
            for name, of_loss in sums.items()
            for part, value in of_loss.items()
        ]
        return torch.stack([part.double() for part in parts]).sum()

    def finish(self) -> float:
        """The weighted sum of all feature losses over the whole global batch."""
        if not self.losses:
            return 0.0
        own = added(self._linear)
        for name, sums in own.items():
            total = {part: sum_over_workers(value.double()) for part, value in sums.items()}
            self.values[name] = self._value(self.losses[name], total)
        return sum(self.losses[name].weight * float(value) for name, value in self.values.items())

    def _value(self, loss: Loss, sums: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return loss.loss.value({**sums, "count": self.count}, self.draw)

    def _gradient(self, loss: Loss, sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The gradient of a loss at the global sums, by the sums' names."""
        with torch.enable_grad():
            at = {name: value.detach().clone().requires_grad_() for name, value in sums.items()}
            value = self._value(loss, at)
        self.values[loss.name] = value.detach()
        gradients = torch.autograd.grad(value, list(at.values()), allow_unused=True)
        return {
            name: torch.zeros_like(part) if gradient is None else gradient
            for (name, part), gradient in zip(at.items(), gradients, strict=True)
        }
