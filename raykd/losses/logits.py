"""Logits that are not multiplied out yet: features and an output layer's weights, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

SLICE = 2**14  # rows of an output layer whose gradient is made at a time


class HeadLogits(NamedTuple):
    """softcap(scale x (sum of features_NH @ weight_VH.T over the pairs + bias_V)), never held for all N rows at once.

    One pair is a plain output layer, tied or not; LoRA on it adds a second, of its rank. `softcap` is c in
    c tanh(x / c) (Gemma 2); `scale` multiplies logits (Cohere's logit_scale, one over Granite's logits_scaling).
    """

    features: tuple[torch.Tensor, ...]
    weights: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def width(self) -> int:
        """V: events per position, which are tokens, classes or positions of an input."""
        return len(self.weights[0])

    @property
    def rows(self) -> int:
        """N: positions."""
        return len(self.features[0])

    def tensors(self) -> list[torch.Tensor]:
        """What a gradient may be wanted of: features, weights, and the bias where there is one."""
        return [*self.features, *self.weights, *([] if self.bias is None else [self.bias])]

    def cut(self, width: int) -> HeadLogits:
        """The first `width` columns alone."""
        bias = None if self.bias is None else self.bias[:width]
        return self._replace(weights=tuple(w[:width] for w in self.weights), bias=bias)

    def pick(self, rows_K: torch.Tensor) -> HeadLogits:
        """These rows alone; under autocast in its type, as a layer would compute."""
        every = len(rows_K) == self.rows
        features, weights = [x if every else x[rows_K] for x in self.features], list(self.weights)
        kind = features[0].device.type
        if torch.is_autocast_enabled(kind):
            to = torch.get_autocast_dtype(kind)
            features, weights = [x.to(to) for x in features], [w.to(to) for w in weights]
        return self._replace(features=tuple(features), weights=tuple(weights))

    def product(self, rows: slice) -> torch.Tensor:
        """(R, V) features times weights plus bias, of some rows, in float32 or wider, before scale and soft-cap."""
        raw, *more = [x[rows] @ w.T for x, w in zip(self.features, self.weights, strict=True)]
        for product in more:
            raw += product
        return wide(raw) if self.bias is None else wide(raw) + self.bias

    def finished(self, product: torch.Tensor) -> torch.Tensor:
        """(R, V) logits of a product."""
        logits = product if self.scale == 1 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def add(self, gradients: Sequence[torch.Tensor | None], upstream_RV: torch.Tensor, rows: slice) -> None:
        """Add to the gradients of `tensors`, where they are wanted, what the gradient of some rows' product gives."""
        bias_gradient = gradients[-1] if self.bias is not None else None
        if bias_gradient is not None:
            bias_gradient += upstream_RV.sum(0)
        pairs = len(self.features)
        upstream_RV = upstream_RV.to(self.features[0].dtype)
        for i, (x, w) in enumerate(zip(self.features, self.weights, strict=True)):
            of_x, of_w = gradients[i], gradients[pairs + i]
            if of_x is not None:
                of_x[rows] = upstream_RV @ w
            if of_w is not None and of_w.dtype == upstream_RV.dtype:
                of_w.addmm_(upstream_RV.T, x[rows])
            elif of_w is not None:
                for at in range(0, len(of_w), SLICE):
                    of_w[at : at + SLICE] += upstream_RV[:, at : at + SLICE].T @ x[rows]


class Logits(NamedTuple):
    """Logits that are multiplied out, with the methods of HeadLogits."""

    values_NV: torch.Tensor

    @property
    def width(self) -> int:
        return self.values_NV.shape[1]

    @property
    def rows(self) -> int:
        return len(self.values_NV)

    def tensors(self) -> list[torch.Tensor]:
        return [self.values_NV]

    def cut(self, width: int) -> Logits:
        return Logits(self.values_NV[:, :width])

    def pick(self, rows_K: torch.Tensor) -> Logits:
        return self if len(rows_K) == self.rows else Logits(self.values_NV[rows_K])

    def product(self, rows: slice) -> torch.Tensor:
        return wide(self.values_NV[rows])

    def finished(self, product: torch.Tensor) -> torch.Tensor:
        return product

    def add(self, gradients: Sequence[torch.Tensor | None], upstream_RV: torch.Tensor, rows: slice) -> None:
        if gradients[0] is not None:
            gradients[0][rows] = upstream_RV


def of_layer(layer: nn.Module, hidden_NH: torch.Tensor, scale: float = 1.0, softcap: float | None = None) -> HeadLogits:
    """The logits of an output layer: a linear one, or a LoRA layer of `peft` around one. Raises TypeError.

    Gradients reach the layer's weights as if it had been called; LoRA's dropout is drawn here, once.
    """
    base: Any = getattr(layer, "base_layer", layer)
    if not isinstance(base, nn.Linear):
        raise TypeError(f"an output layer must be linear, or LoRA around a linear one, not {type(base).__name__}")
    features, weights = [hidden_NH], [base.weight]
    if base is not layer:
        lora: Any = layer
        if lora.merged or any(getattr(lora, "use_dora", {}).values()) or any(getattr(lora, "lora_bias", {}).values()):
            raise TypeError("an output layer with merged LoRA, DoRA or a bias in LoRA cannot be chunked")
        for name in () if lora.disable_adapters else lora.active_adapters:
            if name in lora.lora_A:
                dropped = lora.lora_dropout[name](hidden_NH.to(lora.lora_A[name].weight.dtype))
                features.append((lora.lora_A[name](dropped) * lora.scaling[name]).to(hidden_NH.dtype))
                weights.append(lora.lora_B[name].weight)
    return HeadLogits(tuple(features), tuple(weights), bias=base.bias, scale=scale, softcap=softcap)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or as it is if that is wider."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
