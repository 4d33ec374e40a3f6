"""TODO: docstring."""

from __future__ import annotations

from typing import Any

import torch

from raykd.errors import ModelError
from raykd.recipe.models import Lora


def with_lora(model: Any, lora: Lora) -> Any:
    """The model with adapters in its layers, which alone are trained. Raises ModelError."""
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
    """Weights of a LoRA model as those of its base: W + scaling B A (Hu et al. 2021, section 4.1)."""
    found = {}
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
        found[plain] = weight
    return found
