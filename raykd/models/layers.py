"""Hidden states of a model's layers: only those that are wanted are kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig

from raykd.errors import ModelError
from raykd.losses.loss import Hidden
from raykd.models.pruning import layer_list


def layer_widths(model: Any, wanted: Iterable[Hidden]) -> dict[Hidden, int]:
    """The width D of each of these layers. Raises ModelError for a layer that the model does not have."""
    return _widths(type(model).__name__, model.config, wanted)


def widths_of(folder: str, wanted: Iterable[Hidden]) -> dict[Hidden, int]:
    """`layer_widths` of the model in a folder, from its configuration alone."""
    return _widths(folder, AutoConfig.from_pretrained(folder), wanted)


def require_layer(config: Any, layer: int, name: str) -> None:
    """Raises ModelError for a layer that a model of this configuration does not have; `name` is the model's."""
    count = config.num_hidden_layers
    if not -count - 1 <= layer <= count:
        raise ModelError(f"{name} has hidden states 0 to {count}, or {-count - 1} to -1; found {layer}")


def _widths(name: str, config: Any, wanted: Iterable[Hidden]) -> dict[Hidden, int]:
    for hidden in wanted:
        require_layer(config, hidden.layer, name)
    return {hidden: config.hidden_size for hidden in wanted}


@contextmanager
def captured(model: Any, wanted: Iterable[Hidden]) -> Iterator[dict[Hidden, torch.Tensor]]:
    """A context in which a forward pass fills the dictionary that it yields: (B, S, D) by hidden state.

    They are those of `output_hidden_states`: what the first layer reads (0), what the next layers read, and what the
    body of the model returns (-1).
    """
    states: dict[Hidden, torch.Tensor] = {}
    handles, layers = [], _layers(model) if wanted else []
    for hidden in wanted:
        number = hidden.layer % (len(layers) + 1)

        def keep_input(module: Any, arguments: Any, keywords: Any, hidden: Hidden = hidden) -> None:
            tensors = itertools.chain(arguments, keywords.values())
            states[hidden] = next(value for value in tensors if isinstance(value, torch.Tensor))

        def keep_output(module: Any, arguments: Any, output: Any, hidden: Hidden = hidden) -> None:
            states[hidden] = output[0]

        if number < len(layers):
            handles.append(layers[number].register_forward_pre_hook(keep_input, with_kwargs=True))
        else:
            handles.append(_body(model).register_forward_hook(keep_output))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _body(model: Any) -> Any:
    """The model without its head, also where LoRA is around it."""
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    return model.base_model


def _layers(model: Any) -> list[Any]:
    """The layers, first to last. Raises ModelError for an encoder-decoder, or a model without one list of layers."""
    if model.config.is_encoder_decoder:
        raise ModelError(f"{type(model).__name__}: hidden states of encoder-decoders are not compared yet")
    body = _body(model)
    return list(body.get_submodule(layer_list(body, "layers")))
