"""What a model's configuration admits, read without its weights: before a training or a labelling is paid for."""

from __future__ import annotations

from typing import Any

from raykd.errors import ModelError, comes_again, last_line
from raykd.models import pruning
from raykd.models.adapters import with_lora
from raykd.models.files import model_folder, saved_configuration
from raykd.models.load import configuration_with_head, load_model
from raykd.models.task_heads import task_of
from raykd.recipe.models import FromConfig, Lora, Model, Pruned, Task

SMALL = 10**8  # parameters; a model with random weights and no more of them is built, and reads a few tokens


def admitted_model(spec: Model, tokenizer: Any, task: Task, labels: list[str] | None) -> Any:
    """The model of a training without its weights (torch's device meta); None where torch cannot build it so.

    A small model with random weights is built with them, and reads a few tokens. Raises ModelError for a
    configuration that cannot be built or does not go with the tokenizer, the task or the labels.
    """
    import torch

    config, family = configuration_with_head(spec, tokenizer, task, labels)
    if isinstance(spec, Pruned):
        config = pruning.configuration(config, spec)
    name = spec.model_type if isinstance(spec, FromConfig) else spec.path
    try:
        with torch.device("meta"):
            model = family.from_config(config)
        if isinstance(spec, FromConfig) and sum(p.numel() for p in model.parameters()) <= SMALL:
            model = load_model(spec, tokenizer, task, labels)
            _read(model, tokenizer.eos_token_id or 0)
    except ModelError:
        raise
    except Exception as error:  # each family checks its configuration in its own way
        if not comes_again(error) or isinstance(error, NotImplementedError):  # device meta lacks some operations
            return None
        raise ModelError(f"{name}: a model of this configuration cannot be built: {last_line(error)}") from None
    width = model.get_input_embeddings().weight.shape[0]
    if width < len(tokenizer):
        raise ModelError(f"{name}: the model embeds {width} tokens, its tokenizer has {len(tokenizer)}")
    if task == "generation" and model.get_output_embeddings() is None:
        raise ModelError(f"{name}: {type(model).__name__} has no output layer")
    return model


def _read(model: Any, token: int) -> None:
    """Let a model read two rows of three tokens. Raises what torch or the model raises."""
    import torch

    ids = torch.full((2, 3), token)
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder and model.can_generate() else {}
    with torch.inference_mode():
        model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder)


def require_adapters(model: Any, lora: Lora | None, gradient_checkpointing: bool) -> None:
    """Raise ModelError where a model has no layer that gets adapters, or cannot compute activations twice."""
    if gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(f"gradient_checkpointing: {type(model).__name__} cannot do it")
    if lora:
        with_lora(model, lora)


def learned_positions(model: Any) -> int | None:
    """How many positions a model has embeddings for; None if it has none such, or no bound."""
    from torch.nn import Embedding

    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, Embedding) and last in ("wpe", "embed_positions", "position_embeddings"):
            return min(most or module.num_embeddings, module.num_embeddings)
    return None


def context_length(config: Any) -> int | None:
    """The positions of a model that writes; None if it has no longest input, as T5."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def require_trained_for(path: str, task: Task) -> None:
    """Raise ModelError for a checkpoint that is used as it is, and was trained for another task."""
    trained = task_of(saved_configuration(path))
    if trained != task:
        raise ModelError(f"{path} is a model for the task {trained}, expected {task}")
    folder = model_folder(path)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no safetensors weights")
