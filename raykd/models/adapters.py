"""Low-rank adapters: put into a model before training, merged into its weights after it."""

from __future__ import annotations

from typing import Any

import torch

from raykd.errors import ModelError
from raykd.recipe.models import Lora


def with_lora(model: Any, lora: Lora) -> Any:
    """The model with adapters in its layers; only the adapters are trained. Raises ModelError for modules it lacks."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.modules,  # type: ignore[arg-type]
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"lora.modules {lora.modules!r}: {str(error).splitlines()[0]}") from None


def merged_weights(weights: dict[str, Any], model: Any) -> dict[str, torch.Tensor]:
    """The weights of a LoRA model under the names of its base model: W + scaling B A (Hu et al. 2021, section 4.1).

    W (out, in), B (out, rank), A (rank, in); the sum is computed in float32 and has the type of W.
    """
    merged = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        stem = name.removesuffix("base_layer.weight")
        down = weights.get(f"{stem}lora_A.default.weight") if stem != name else None
        if down is not None:
            layer = model.get_submodule(stem.rstrip("."))
            change = layer.scaling["default"] * (weights[f"{stem}lora_B.default.weight"].float() @ down.float())
            weight = (weight.float() + (change.T if layer.fan_in_fan_out else change)).to(weight.dtype)
        merged[plain] = weight
    return merged
