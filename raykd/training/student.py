"""A model that is being taught: its forward gives losses, never logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from raykd.errors import ModelError
from raykd.losses.logits import HeadLogits, Logits, of_layer, wide
from raykd.losses.numbers import number_losses
from raykd.losses.teachers import LEAST
from raykd.losses.tokens import IGNORE, Result, TokenLoss, token_losses
from raykd.recipe.models import Task

FAR = 1e6  # a logit that any soft-cap would hold back


class Student(nn.Module):
    """A Hugging Face model and the way from its batch to losses; a language model's logits a chunk at a time.

    What its own code does to logits after the output layer (a scale, a soft-cap, a bias) is found by trying: the layer
    is made to give known numbers and the model asked for its logits. Data parallel training wraps the Student, so that
    the output layer is used inside the wrapped forward and its gradients are ordinary ones.
    """

    def __init__(self, model: Any, columns: int | None = None, task: Task = "generation") -> None:
        """columns: how many tokens its tokenizer can produce; logits beyond them are cut. Raises ModelError.

        The model must have the head of its task, as `models.load` gives it. Columns are for generation alone.
        """
        super().__init__()
        self.model, self.columns = model, columns
        self.task: Task = task
        self.causal = not model.config.is_encoder_decoder
        self.bias: torch.Tensor | None
        if task == "generation":
            self.scale, self.softcap, bias = _after_the_layer(model)
            self.register_buffer("bias", bias, persistent=False)
        elif columns is not None:
            raise ValueError(f"columns are tokens to be produced, and the task is {task}")

    def forward(
        self, inputs: dict[str, torch.Tensor], labels_BT: torch.Tensor, losses: Sequence[TokenLoss], **more: Any
    ) -> Result:
        """The losses of a batch: `token_losses`, or of a regression `number_losses`. `more` goes to them.

        labels_BT, by task: generation, target tokens aligned with the logits, see `batches.collate`; classification,
        (B, 1) classes; span, (B, 2) first and last token of the answer; regression, (B, 1) numbers. K labels are not
        IGNORE, and what is given and comes back for each (teacher, weights_N, easy_mask_N, values) has these K alone,
        row by row. inputs are what the model takes; input_ids and attention_mask are among them.
        """
        counted_BT = labels_BT != IGNORE
        labels_K, side = labels_BT[counted_BT], self.logits(inputs, labels_BT)
        given = {name: value for name, value in more.items() if value is not None}
        if self.task == "regression":
            assert isinstance(side, Logits)
            return number_losses(losses, side.values_NV.squeeze(1), labels_K, **given)
        if self.task == "extractive_qa" and isinstance(given.get("teacher"), torch.Tensor | Logits):
            given["teacher"] = _within(given["teacher"], _readable(inputs, counted_BT))
        return token_losses(losses, side, labels_K, columns=self.columns, **given)

    def logits(self, inputs: dict[str, torch.Tensor], labels_BT: torch.Tensor) -> HeadLogits | Logits:
        """The logits of the K positions that have a label, row by row; a language model's not yet multiplied out.

        They are (K, V); of a classification over classes, of a span over the S positions of the input, where padding
        has LEAST, of a regression (K, 1) predictions.
        """
        counted_BT = labels_BT != IGNORE
        if self.task == "generation":
            return self._head_logits(inputs, labels_BT, counted_BT)
        found = self.model(**inputs)
        if self.task != "extractive_qa":
            return Logits(found.logits[counted_BT.squeeze(1)])
        ends_B2S = torch.stack([found.start_logits, found.end_logits], 1)
        return _within(Logits(ends_B2S[counted_BT]), _readable(inputs, counted_BT))

    def _head_logits(self, inputs: Any, labels_BT: torch.Tensor, counted_BT: torch.Tensor) -> HeadLogits:
        if not self.causal:
            pad, start = self.model.config.pad_token_id, self.model.config.decoder_start_token_id
            previous = labels_BT[:, :-1].masked_fill(~counted_BT[:, :-1], pad)
            first = torch.full_like(labels_BT[:, :1], start)
            inputs = {**inputs, "decoder_input_ids": torch.cat([first, previous], dim=1)}
        layer = self.model.get_output_embeddings()
        with _instead_of(layer, lambda hidden: hidden[..., :1]) as met:
            self.model(**inputs, use_cache=False)
        logits = of_layer(layer, met[0][counted_BT], self.scale, self.softcap)
        if self.bias is not None:
            logits = logits._replace(bias=self.bias if logits.bias is None else logits.bias + self.bias)
        return logits


def _readable(inputs: dict[str, torch.Tensor], counted_BT: torch.Tensor) -> torch.Tensor:
    """(K, S) whether a position of the input is no padding, for each of the K labels."""
    there_BS = inputs["attention_mask"].bool()
    return there_BS[:, None].expand(-1, counted_BT.shape[1], -1)[counted_BT]


def _within(side: torch.Tensor | Logits, there_KS: torch.Tensor) -> Logits:
    """Logits over positions, LEAST outside: an infinite one would make reverse divergences infinite, or no number."""
    values_KS = side.values_NV if isinstance(side, Logits) else side
    return Logits(wide(values_KS).masked_fill(~there_KS, LEAST))


@contextmanager
def _instead_of(layer: nn.Module, forward: Any) -> Iterator[list[torch.Tensor]]:
    """Within, calls of the layer give `forward` of what comes in, and what comes in is kept."""
    met: list[torch.Tensor] = []

    def caught(hidden: torch.Tensor) -> torch.Tensor:
        met.append(hidden)
        return forward(hidden)

    layer.forward = caught
    try:
        yield met
    finally:
        del layer.forward


@torch.no_grad()
def _after_the_layer(model: Any) -> tuple[float, float | None, torch.Tensor | None]:
    """Scale, soft-cap and bias (V,) that a model applies to what its output layer gives. Raises ModelError."""
    layer, kind = model.get_output_embeddings(), type(model).__name__
    if layer is None:
        raise ModelError(f"{kind} has no output layer")
    width = getattr(layer, "base_layer", layer).weight.shape[0]
    device = next(model.parameters()).device
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    given = torch.tensor([0.0, 1.0, 2.0, FAR], dtype=dtype, device=device)[None, :, None].expand(1, 4, width)
    ids = torch.zeros(1, 4, dtype=torch.long, device=device)
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    training = model.training
    model.eval()
    with _instead_of(layer, lambda hidden: given):
        found = model(input_ids=ids, use_cache=False, **decoder).logits.to(dtype)[0]
    model.train(training)
    zero, one, two, far = found
    bias = zero.clone() if zero.any() else None
    scale, softcap = (one - zero)[0].item(), None
    if abs(far[0].item()) < FAR * abs(scale) / 2:
        softcap = far[0].item()
        scale = softcap * math.atanh(one[0].item() / softcap)
    scale = 1.0 if abs(scale - 1) < 1e-5 else scale
    expected = two.new_full((width,), 2 * scale if softcap is None else softcap * math.tanh(2 * scale / softcap))
    if not torch.allclose(two, expected + zero, rtol=1e-4) or (bias is not None and softcap is not None):
        raise ModelError(f"{kind} changes its logits in a way that is neither a scale, a soft-cap nor a bias")
    return scale, softcap, bias
