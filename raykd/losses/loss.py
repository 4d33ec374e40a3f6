"""The seam of losses: what a loss is, and one of a training's losses with its name and weight.

Token losses compare distributions at positions that have a target, and all share one pass over the student's output
layer, a chunk of positions at a time. Number losses compare the predicted numbers of a regression. Feature losses
compare hidden states, through sums over tokens that are added over micro-batches and workers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch

TOKENS = ("student_NE", "teacher_NE", "at_N")  # parameters of a token loss's function
NUMBERS = ("student_N", "teacher_N", "labels_N")  # parameters of a number loss's function


class TokenLoss(Protocol):
    """A loss over E events at each of N positions; N are the positions that have a target.

    needs   "teacher": the teacher's distribution over the events; "target": the event of the target
    terms   the names of its terms, and what the mean of each is multiplied by; {"": 1} for a loss of one term
    joins   whether it has a statistic, which is joined over the global batch
    """

    needs: frozenset[str]
    terms: Mapping[str, float]
    joins: bool

    def statistic(self, teacher: Any, labels_N: torch.Tensor) -> torch.Tensor:
        """(N,) a number for each position, from the teacher's outputs and the target ids; only if it joins."""
        ...

    def weights(
        self, weights_N: torch.Tensor, statistic_N: torch.Tensor | None, joined_M: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """By term (N,): what each position counts for in it, of what it counts for in the batch.

        joined_M is the statistic of all M positions of the global batch. The sums of the weights over the global
        batch are the terms' denominators, so they are known before the student's forward pass.
        """
        ...

    def values(
        self, student_NE: torch.Tensor, teacher_NE: torch.Tensor | None, at_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """By term (N,), in nats, and perhaps further values for diagnosis: from log-probabilities over the events."""
        ...


class Hidden(NamedTuple):
    """Hidden states of a layer, (B, S, D), as `transformers` numbers them: 0 the embeddings, -1 the model's last."""

    layer: int


Feature = Hidden


class FeatureBatch(NamedTuple):
    """What the features of B rows are compared with.

    teacher     by feature the teacher's, (B, S, D), without a gradient
    weights_BS  what each position counts for, float64; 0 for padding
    """

    teacher: Mapping[Feature, torch.Tensor]
    weights_BS: torch.Tensor


Draw = Callable[[], torch.Generator]  # a fresh generator, the same for every micro-batch and worker of a step


@runtime_checkable
class FeatureLoss(Protocol):
    """A loss that is a function of sums over tokens. A loss with a projection is a `torch.nn.Module`.

    A module's parameters are trained with the student and kept in checkpoints, and are not exported.

    student_needs, teacher_needs   the features that it compares
    linear  its value is sums["sum"] / sums["count"], so that micro-batches need not be read twice
    """

    student_needs: frozenset[Feature]
    teacher_needs: frozenset[Feature]
    linear: bool

    def fit(self, student_widths: Mapping[Feature, int], teacher_widths: Mapping[Feature, int]) -> None:
        """Called once before training, with the features' widths D. Raises ValueError for widths that do not fit."""
        ...

    def sums(self, student: Mapping[Feature, torch.Tensor], batch: FeatureBatch, draw: Draw) -> dict[str, torch.Tensor]:
        """Sums over the tokens of some rows, by name. `count`, the sum of batch.weights_BS, need not be among them."""
        ...

    def value(self, sums: Mapping[str, torch.Tensor], draw: Draw) -> torch.Tensor:
        """The loss, a scalar, from the sums over all tokens of the global batch; `count` is among them.

        0 where nothing counts. Its gradient is taken at these sums.
        """
        ...


@dataclass(frozen=True)
class FunctionLoss:
    """The token loss, or number loss, of a function of one value per position; see `divergences`.

    The names of the function's parameters say what it needs: of student_NE, teacher_NE and at_N for a token loss, of
    student_N, teacher_N and labels_N for a number loss. `options` are its other arguments.
    """

    function: Callable[..., torch.Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    terms = {"": 1.0}
    joins = False

    def check(self) -> None:
        """Raises ValueError for a function with other parameters than a loss has, or options that it does not have."""
        names = list(inspect.signature(self.function).parameters)
        known = NUMBERS if self.of_numbers else TOKENS
        unknown = [name for name in names if name not in (*known, *self.options) and not self._has_default(name)]
        unknown += [name for name in self.options if name not in names]
        if names[:1] != [known[0]] or unknown:
            raise ValueError(
                f"{self.function.__name__}: a loss is a function of {', '.join(TOKENS)}, or of some of them, and of "
                f"options; its parameters are {', '.join(names) or 'none'}, its options "
                f"{', '.join(self.options) or 'none'}"
            )

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """See `TokenLoss.needs`."""
        kinds = {"teacher_NE": "teacher", "at_N": "target", "teacher_N": "teacher", "labels_N": "target"}
        return frozenset(kinds[name] for name in inspect.signature(self.function).parameters if name in kinds)

    @property
    def of_numbers(self) -> bool:
        """Whether it is a loss of a regression."""
        return next(iter(inspect.signature(self.function).parameters), "") == NUMBERS[0]

    def _has_default(self, name: str) -> bool:
        return inspect.signature(self.function).parameters[name].default is not inspect.Parameter.empty

    def statistic(self, teacher: Any, labels_N: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def weights(
        self, weights_N: torch.Tensor, statistic_N: torch.Tensor | None, joined_M: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        return {"": weights_N}

    def values(
        self, student_NE: torch.Tensor, teacher_NE: torch.Tensor | None, at_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        arguments = {"student_NE": student_NE}
        if "teacher" in self.needs and teacher_NE is not None:
            arguments["teacher_NE"] = teacher_NE
        if "target" in self.needs and at_N is not None:
            arguments["at_N"] = at_N
        return {"": self.function(**arguments, **self.options)}

    def number_values(self, student_N: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(N,) of a number loss; `targets` are the predictions of the "teacher" and the labels, "target"."""
        by_parameter = {"teacher_N": targets["teacher"]} if "teacher" in self.needs else {}
        by_parameter |= {"labels_N": targets["target"]} if "target" in self.needs else {}
        return self.function(student_N, **by_parameter, **self.options)


@dataclass(frozen=True)
class Loss:
    """One of a training's losses.

    name         of its term; the terms of a loss that has several are <name>_<term>
    loss         a TokenLoss or FeatureLoss
    weight       what its value is multiplied by in the total
    temperature  of token losses: divides the logits of student and teacher
    squared      of token losses: whether values are multiplied by the temperature squared
    """

    name: str
    loss: Any
    weight: float = 1.0
    temperature: float = 1.0
    squared: bool = False

    @property
    def of_features(self) -> bool:
        return isinstance(self.loss, FeatureLoss)

    @property
    def of_numbers(self) -> bool:
        return getattr(self.loss, "of_numbers", False)

    @property
    def factors(self) -> dict[str, float]:
        """Its terms by name: what the mean of each is multiplied by in the total."""
        if self.of_features:
            return {self.name: self.weight}
        return {self.term(name): self.weight * factor for name, factor in self.loss.terms.items()}

    @property
    def needs(self) -> frozenset[str]:
        """Of "teacher" (its distribution), "target" and "features"."""
        return frozenset({"features"}) if self.of_features else self.loss.needs

    def term(self, name: str) -> str:
        """The full name of one of its terms or values."""
        return f"{self.name}_{name}" if name else self.name


def make_loss(
    code: Any,
    name: str | None = None,
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
    squared: bool = False,
    **options: Any,
) -> Loss:
    """A loss from a function, or from a class of the protocols TokenLoss or FeatureLoss, which gets the options.

    Its name is the function's unless given. Raises ValueError for options that it does not have, or for a function
    with other parameters than a loss has.
    """
    if isinstance(code, type):
        try:
            loss = code(**options)
        except TypeError as error:
            raise ValueError(f"{code.__name__}: {error}") from None
        if not isinstance(loss, FeatureLoss) and not all(hasattr(loss, part) for part in ("needs", "terms", "values")):
            raise ValueError(f"{code.__name__}: is neither a TokenLoss nor a FeatureLoss of raykd.losses.loss")
    elif callable(code):
        loss = FunctionLoss(cast(Callable[..., torch.Tensor], code), options)
        loss.check()
    else:
        raise ValueError(f"{code!r:.60}: is neither a function nor a class of a loss")
    return Loss(name or code.__name__, loss, weight, temperature, squared)
