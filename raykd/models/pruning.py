"""Pruning: a student that begins with some layers of a larger model (KD4Gen's pruned decoders, MiniLM).

The smaller model is built from its own configuration and loads its weights strictly, so that `save_pretrained` and
`from_pretrained` know it.
"""

from __future__ import annotations

import re
from typing import Any

from raykd.errors import ModelError
from raykd.recipe.models import Pruned

# the names that configurations have for the number of layers that each list of a Pruned selects from
COUNTS = {
    "layers": ("num_hidden_layers",),
    "encoder_layers": ("encoder_layers", "num_encoder_layers", "num_layers"),
    "decoder_layers": ("decoder_layers", "num_decoder_layers"),
}


def prune(model: Any, spec: Pruned) -> Any:
    """A smaller model with the weights of the layers that stay, and of all that is no layer. Raises ModelError."""
    pruned = type(model)(configuration(model.config, spec))
    weights = model.state_dict()
    for field in COUNTS:
        layers = getattr(spec, field)
        if layers is not None:
            weights = _renumbered(weights, layer_list(model, field), layers)
    try:
        pruned.load_state_dict(weights)
    except RuntimeError:
        raise ModelError(
            f"{spec.path}: layers of {type(model).__name__} differ, so that they cannot be pruned"
        ) from None
    if model.can_generate():
        pruned.generation_config = model.generation_config
    return pruned.train(model.training)


def configuration(config: Any, spec: Pruned) -> Any:
    """The configuration of a model with some of its layers. Raises ModelError for layers that it does not have."""
    fields = "encoder_layers, decoder_layers or both" if config.is_encoder_decoder else "layers"
    if config.is_encoder_decoder == (spec.layers is not None):
        kind = "an encoder-decoder" if config.is_encoder_decoder else "no encoder-decoder"
        raise ModelError(f"{spec.path} is {kind} model: give {fields} instead")
    settings, changes = config.to_dict(), {}
    for field in COUNTS:
        layers = getattr(spec, field)
        if layers is None:
            continue
        name, count = _count(config, field)
        if layers[-1] >= count:
            raise ModelError(
                f"{field}: {spec.path} has {count} layers, 0 to {count - 1}; there is no layer {layers[-1]}"
            )
        if settings.get("scale_attn_by_inverse_layer_idx") and layers != list(range(len(layers))):
            raise ModelError(f"{field}: {spec.path} divides attention by a layer's number: only its last can be pruned")
        changes[name] = len(layers)
        for setting, value in settings.items():  # layer_types and similar lists
            if isinstance(value, list) and "layer" in setting and len(value) == count:
                changes[setting] = [value[layer] for layer in layers]
    try:
        return type(config).from_dict({**settings, **changes})
    except Exception as error:  # each configuration checks itself in its own way
        reason = str(error).splitlines()[0]
        raise ModelError(f"{spec.path}: {config.model_type} models cannot be pruned: {reason}") from None


def _count(config: Any, field: str) -> tuple[str, int]:
    """The name that a configuration has for the number of layers that `field` selects from, and that number.

    Raises ModelError where it has none.
    """
    settings = config.to_dict()
    for name in COUNTS[field]:
        name = config.attribute_map.get(name, name)
        if name in settings:
            return name, settings[name]
    raise ModelError(f"{field}: the configuration of {config.model_type} models does not say how many there are")


def layer_list(model: Any, field: str) -> str:
    """The name of the list of modules that `field` selects from. Raises ModelError unless there is exactly one."""
    from torch.nn import ModuleList

    part, count = field.removesuffix("layers").rstrip("_"), _count(model.config, field)[1]
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ModuleList) and len(module) == count and not re.search(r"\.\d+\.", f"{name}.")
    ]
    lists = [name for name in lists if not part or part in name.split(".")]
    if len(lists) != 1:
        raise ModelError(f"{type(model).__name__} does not hold its {count} layers in one list, so none can be pruned")
    return lists[0]


def _renumbered(weights: dict[str, Any], layer_list: str, layers: list[int]) -> dict[str, Any]:
    """Weights by the names they have where only some layers of the list are left."""
    renumbered = {}
    for name, tensor in weights.items():
        if not name.startswith(f"{layer_list}."):
            renumbered[name] = tensor
            continue
        number, rest = name.removeprefix(f"{layer_list}.").split(".", 1)
        if int(number) in layers:
            renumbered[f"{layer_list}.{layers.index(int(number))}.{rest}"] = tensor
        elif number == "0" and f"{layer_list}.{layers[0]}.{rest}" not in weights:
            # T5's relative positions: the first layer alone has them, for all
            renumbered[f"{layer_list}.0.{rest}"] = tensor
    return renumbered
