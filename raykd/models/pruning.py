"""Cut models: some layers of a larger model, chosen as students are begun (KD4Gen's pruned decoders, MiniLM).

The smaller model is made anew from its own configuration and takes its weights by strict loading, so that it is one
that `save_pretrained` and `from_pretrained` know.
"""

from __future__ import annotations

import re
from typing import Any

from raykd.errors import ModelError
from raykd.recipe.models import Pruned

# what configurations call the number of layers that each list of a Cut chooses from
COUNTS = {
    "layers": ("num_hidden_layers",),
    "encoder_layers": ("encoder_layers", "num_encoder_layers", "num_layers"),
    "decoder_layers": ("decoder_layers", "num_decoder_layers"),
}


def prune(model: Any, spec: Pruned) -> Any:
    """A smaller model with the weights of the layers kept, and of all that is no layer. Raises ModelError."""
    made = type(model)(configuration(model.config, spec))
    weights = model.state_dict()
    for field in COUNTS:
        kept = getattr(spec, field)
        if kept is not None:
            weights = _renumbered(weights, _layers_at(model, field), kept)
    try:
        made.load_state_dict(weights)
    except RuntimeError:
        raise ModelError(f"{spec.path}: layers of {type(model).__name__} differ, so that they cannot be cut") from None
    if model.can_generate():
        made.generation_config = model.generation_config
    return made.train(model.training)


def configuration(config: Any, spec: Pruned) -> Any:
    """The configuration of a model with some of its layers. Raises ModelError for layers that it does not have."""
    sides = "encoder_layers, decoder_layers or both" if config.is_encoder_decoder else "layers"
    if config.is_encoder_decoder == (spec.layers is not None):
        kind = "an encoder-decoder" if config.is_encoder_decoder else "no encoder-decoder"
        raise ModelError(f"{spec.path} is {kind} model: give {sides} instead")
    known, changes = config.to_dict(), {}
    for field in COUNTS:
        kept = getattr(spec, field)
        if kept is None:
            continue
        name, count = _count(config, field)
        if kept[-1] >= count:
            raise ModelError(f"{field}: {spec.path} has {count} layers, 0 to {count - 1}; there is no layer {kept[-1]}")
        if known.get("scale_attn_by_inverse_layer_idx") and kept != list(range(len(kept))):
            raise ModelError(f"{field}: {spec.path} divides attention by a layer's number: only its last can be cut")
        changes[name] = len(kept)
        for other, value in known.items():  # layer_types and the like
            if isinstance(value, list) and "layer" in other and len(value) == count:
                changes[other] = [value[layer] for layer in kept]
    try:
        return type(config).from_dict({**known, **changes})
    except Exception as error:  # each configuration checks itself in its own way
        why = str(error).splitlines()[0]
        raise ModelError(f"{spec.path}: {config.model_type} models cannot be cut: {why}") from None


def _count(config: Any, field: str) -> tuple[str, int]:
    """How a configuration names the number of layers that `field` of a Cut chooses from, and that number."""
    known = config.to_dict()
    for name in COUNTS[field]:
        name = config.attribute_map.get(name, name)
        if name in known:
            return name, known[name]
    raise ModelError(f"{field}: the configuration of {config.model_type} models does not say how many there are")


def _layers_at(model: Any, field: str) -> str:
    """The name of the list of modules that `field` of a Cut chooses from. Raises ModelError."""
    from torch.nn import ModuleList

    side, count = field.removesuffix("layers").rstrip("_"), _count(model.config, field)[1]
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, ModuleList) and len(module) == count and not re.search(r"\.\d+\.", f"{name}.")
    ]
    found = [name for name in found if not side or side in name.split(".")]
    if len(found) != 1:
        raise ModelError(f"{type(model).__name__} does not hold its {count} layers in one list, so none can be cut")
    return found[0]


def _renumbered(weights: dict[str, Any], at: str, kept: list[int]) -> dict[str, Any]:
    """Weights by the names they have where only the kept layers of the list `at` are left."""
    found = {}
    for name, tensor in weights.items():
        if not name.startswith(f"{at}."):
            found[name] = tensor
            continue
        number, rest = name.removeprefix(f"{at}.").split(".", 1)
        if int(number) in kept:
            found[f"{at}.{kept.index(int(number))}.{rest}"] = tensor
        elif number == "0" and f"{at}.{kept[0]}.{rest}" not in weights:
            found[f"{at}.0.{rest}"] = tensor  # T5's relative positions: the first layer alone has them, for all
    return found
