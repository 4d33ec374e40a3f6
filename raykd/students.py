"""A model that is being taught: its forward gives losses, never logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from raykd.errors import ModelError
from raykd.losses.logits import HeadLogits, of_layer
from raykd.losses.tokens import IGNORE, Result, TokenLoss, token_losses

FAR = 1e6  # a logit that any soft-cap would hold back


class Student(nn.Module):
    """A Hugging Face model and the way from its last hidden states to losses, a chunk of positions at a time.

    What its own code does to logits after the output layer (a scale, a soft-cap, a bias) is found by trying: the layer
    is made to give known numbers and the model asked for its logits. Data parallel training wraps the Student, so that
    the output layer is used inside the wrapped forward and its gradients are ordinary ones.
    """

    def __init__(self, model: Any, columns: int | None = None) -> None:
        """columns: how many tokens its tokenizer can produce; logits beyond them are cut. Raises ModelError."""
        super().__init__()
        self.model, self.columns = model, columns
        self.causal = not model.config.is_encoder_decoder
        self.scale, self.softcap, bias = _after_the_layer(model)
        self.bias: torch.Tensor | None
        self.register_buffer("bias", bias, persistent=False)

    def forward(
        self, inputs: dict[str, torch.Tensor], labels_BT: torch.Tensor, losses: Sequence[TokenLoss], **more: Any
    ) -> Result:
        """`token_losses` of a batch; `more` goes to it, with K entries: one per target, row by row.

        inputs are input_ids and attention_mask; labels_BT are aligned with the logits, see `batches.collate`.
        """
        labels_K = labels_BT[labels_BT != IGNORE]
        return token_losses(losses, self.logits(inputs, labels_BT), labels_K, columns=self.columns, **more)

    def logits(self, inputs: dict[str, torch.Tensor], labels_BT: torch.Tensor) -> HeadLogits:
        """The logits of the K positions that have a target, row by row, not yet multiplied out."""
        kept_K = (labels_BT != IGNORE).flatten().nonzero().squeeze(1)
        if not self.causal:
            pad, start = self.model.config.pad_token_id, self.model.config.decoder_start_token_id
            previous = labels_BT[:, :-1].masked_fill(labels_BT[:, :-1] == IGNORE, pad)
            first = torch.full_like(labels_BT[:, :1], start)
            inputs = {**inputs, "decoder_input_ids": torch.cat([first, previous], dim=1)}
        layer = self.model.get_output_embeddings()
        with _instead_of(layer, lambda hidden: hidden[..., :1]) as met:
            self.model(**inputs, use_cache=False)
        logits = of_layer(layer, met[0].flatten(0, -2), self.scale, self.softcap)
        if self.bias is not None:
            logits = logits._replace(bias=self.bias if logits.bias is None else logits.bias + self.bias)
        return logits.pick(kept_K)


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
