"""Export: a trained model and its tokenizer as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from raykd.errors import TrainingError, first_line
from raykd.models.adapters import merged_weights
from raykd.run.files import replaced


def export_model(folder: Path, student: Any, tokenizer: Any, rank: int) -> None:
    """Write the model as a Hugging Face folder, whole or not at all. LoRA is merged.

    All workers must call it, with their `rank`; the first one writes. Raises TrainingError where it cannot be written.
    """
    model: Any = student.model
    sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
    lora = hasattr(model, "peft_config")
    weights = None
    if sharded or lora:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tied = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {n for n, _ in model.named_parameters()}
        whole = get_model_state_dict(model, options=options)
        weights = {name: weight for name, weight in whole.items() if name not in tied}
    if rank:
        return
    if lora:
        weights, model = merged_weights(weights or {}, model), model.get_base_model()
    try:
        with replaced(folder) as part:
            model.save_pretrained(part, **({"state_dict": weights} if weights is not None else {}))
            tokenizer.save_pretrained(part)
    except Exception as error:  # safetensors has an error of its own
        raise TrainingError(f"{folder}: the model cannot be written: {first_line(error)}") from None
