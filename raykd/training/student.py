"""The student: a model whose forward pass returns losses, never logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from raykd.errors import ModelError
from raykd.losses.logits import HeadLogits, Logits, of_layer, wide
from raykd.losses.loss import Draw, FeatureBatch, FeatureLoss, Loss
from raykd.losses.numbers import number_losses
from raykd.losses.teachers import LEAST
from raykd.losses.tokens import IGNORE, Result, TokenBatch, token_losses
from raykd.models.layers import captured
from raykd.recipe.models import Task

FAR = 1e6  # a logit that any soft-cap would cut


class Student(nn.Module):
    """A Hugging Face model that turns a batch into losses; a language model's logits are computed chunk by chunk.

    Some models change logits after the output layer, by a scale, a soft-cap or a bias. That change is measured: the
    output layer is made to return known numbers, and the model's logits are read. Data parallel training wraps the
    Student, so that the output layer is used inside the wrapped forward and its gradients are ordinary ones.
    """

    def __init__(
        self,
        model: Any,
        shared_vocab_size: int | None = None,
        task: Task = "generation",
        feature_losses: Sequence[Loss] = (),
    ) -> None:
        """The model must have the head of its task, as `models.load.load_model` returns it.

        shared_vocab_size  for generation: number of token ids that student and teacher share; other logits are cut
        feature_losses     what `forward` sums; the projections among them are parameters of the Student

        Raises ModelError for a model that changes its logits in another way.
        """
        super().__init__()
        self.model, self.shared_vocab_size = model, shared_vocab_size
        self.task: Task = task
        self.causal = not model.config.is_encoder_decoder
        self.feature_losses: dict[str, FeatureLoss] = {loss.name: loss.loss for loss in feature_losses}
        self.projections = nn.ModuleList(loss for loss in self.feature_losses.values() if isinstance(loss, nn.Module))
        self.bias: torch.Tensor | None
        if task == "generation":
            self.scale, self.softcap, bias = _after_the_layer(model)
            self.register_buffer("bias", bias, persistent=False)
        elif shared_vocab_size is not None:
            raise ValueError(f"shared_vocab_size counts tokens to be produced, and the task is {task}")

    def forward(
        self,
        inputs: dict[str, torch.Tensor],
        losses: Sequence[Loss],
        batch: TokenBatch,
        features: FeatureBatch | None = None,
        draw: Draw = torch.Generator,
        **options: Any,
    ) -> Result:
        """The losses of B rows, as `token_losses` returns them; those of a regression as `number_losses` does.

        inputs    the model's arguments, (B, S) each; input_ids and attention_mask are among them
        losses    those on logits or numbers
        batch     labels by task: generation, (B, T) target ids aligned with the logits, see `batches.collate`;
                  classification, (B, 1) classes; extractive_qa, (B, 2) first and last token of the answer; regression,
                  (B, 1) numbers. K labels are not IGNORE; the batch's other tensors have an entry for each of these K,
                  row by row
        features  what the feature losses need; the result then has their sums
        draw      the step's random generator for the feature losses
        options   arguments of `token_losses`: cut_infinite, chunk_rows

        The result's values are (K,). Raises ValueError for losses that the teacher's outputs do not fit.
        """
        counted_BT = batch.labels != IGNORE
        with captured(self.model, self.feature_needs() if features else ()) as states:
            logits = self.logits(inputs, batch.labels)
        batch = batch._replace(labels=batch.labels[counted_BT])
        if self.task == "regression":
            assert isinstance(logits, Logits)
            result = number_losses(losses, logits.values_NV.squeeze(1), batch)
        else:
            if self.task == "extractive_qa" and isinstance(batch.teacher, torch.Tensor | Logits):
                batch = batch._replace(teacher=_within(batch.teacher, _readable(inputs, counted_BT)))
            result = token_losses(losses, logits, batch, shared_vocab_size=self.shared_vocab_size, **options)
        if not features:
            return result
        return result._replace(sums={n: loss.sums(states, features, draw) for n, loss in self.feature_losses.items()})

    def feature_needs(self) -> set[Any]:
        """The hidden states that the feature losses compare."""
        return {need for loss in self.feature_losses.values() for need in loss.student_needs}

    def logits(self, inputs: dict[str, torch.Tensor], labels_BT: torch.Tensor) -> HeadLogits | Logits:
        """(K, V) logits of the K positions that have a label, row by row; a language model's are HeadLogits.

        V counts tokens, classes, or for extractive_qa the S positions of the input, where padding has LEAST. A
        regression returns (K, 1) predictions.
        """
        counted_BT = labels_BT != IGNORE
        if self.task == "generation":
            return self._head_logits(inputs, labels_BT, counted_BT)
        output = self.model(**inputs)
        if self.task != "extractive_qa":
            return Logits(output.logits[counted_BT.squeeze(1)])
        ends_B2S = torch.stack([output.start_logits, output.end_logits], 1)
        return _within(Logits(ends_B2S[counted_BT]), _readable(inputs, counted_BT))

    def _head_logits(self, inputs: Any, labels_BT: torch.Tensor, counted_BT: torch.Tensor) -> HeadLogits:
        if not self.causal:
            pad, start = self.model.config.pad_token_id, self.model.config.decoder_start_token_id
            previous = labels_BT[:, :-1].masked_fill(~counted_BT[:, :-1], pad)
            first = torch.full_like(labels_BT[:, :1], start)
            inputs = {**inputs, "decoder_input_ids": torch.cat([first, previous], dim=1)}
        layer = self.model.get_output_embeddings()
        with _replaced_forward(layer, lambda hidden: hidden[..., :1]) as hidden_states:
            self.model(**inputs, use_cache=False)
        logits = of_layer(layer, hidden_states[0][counted_BT], self.scale, self.softcap)
        if self.bias is not None:
            logits = logits._replace(bias=self.bias if logits.bias is None else logits.bias + self.bias)
        return logits


def _readable(inputs: dict[str, torch.Tensor], counted_BT: torch.Tensor) -> torch.Tensor:
    """(K, S) bool, for each of the K labels: which positions of its input are not padding."""
    readable_BS = inputs["attention_mask"].bool()
    return readable_BS[:, None].expand(-1, counted_BT.shape[1], -1)[counted_BT]


def _within(logits: torch.Tensor | Logits, readable_KS: torch.Tensor) -> Logits:
    """Logits over positions; padding gets LEAST, because -inf would make reverse divergences infinite or nan."""
    values_KS = logits.values_NV if isinstance(logits, Logits) else logits
    return Logits(wide(values_KS).masked_fill(~readable_KS, LEAST))


@contextmanager
def _replaced_forward(
    layer: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """A context in which `forward` replaces the layer's own; yields a list that collects the layer's inputs."""
    inputs: list[torch.Tensor] = []

    def collecting(hidden: torch.Tensor) -> torch.Tensor:
        inputs.append(hidden)
        return forward(hidden)

    layer.forward = collecting
    try:
        yield inputs
    finally:
        del layer.forward


@torch.no_grad()
def _after_the_layer(model: Any) -> tuple[float, float | None, torch.Tensor | None]:
    """Scale, soft-cap and bias (V,) that a model applies to its output layer's result. Raises ModelError."""
    layer, kind = model.get_output_embeddings(), type(model).__name__
    if layer is None:
        raise ModelError(f"{kind} has no output layer")
    width = getattr(layer, "base_layer", layer).weight.shape[0]
    device = next(model.parameters()).device
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    probes = torch.tensor([0.0, 1.0, 2.0, FAR], dtype=dtype, device=device)[None, :, None].expand(1, 4, width)
    ids = torch.zeros(1, 4, dtype=torch.long, device=device)
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    training = model.training
    model.eval()
    with _replaced_forward(layer, lambda hidden: probes):
        at_0, at_1, at_2, at_far = model(input_ids=ids, use_cache=False, **decoder).logits.to(dtype)[0]
    model.train(training)
    bias = at_0.clone() if at_0.any() else None
    scale, softcap = (at_1 - at_0)[0].item(), None
    if abs(at_far[0].item()) < FAR * abs(scale) / 2:
        softcap = at_far[0].item()
        scale = softcap * math.atanh(at_1[0].item() / softcap)
    scale = 1.0 if abs(scale - 1) < 1e-5 else scale
    expected = at_2.new_full((width,), 2 * scale if softcap is None else softcap * math.tanh(2 * scale / softcap))
    if not torch.allclose(at_2, expected + at_0, rtol=1e-4) or (bias is not None and softcap is not None):
        raise ModelError(f"{kind} changes its logits in a way that is neither a scale, a soft-cap nor a bias")
    return scale, softcap, bias
