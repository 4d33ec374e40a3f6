"""A model as a folder of files: where it is, its configuration, its sizes, and a name by its content."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any

from raykd.errors import ModelError, first_line
from raykd.models import pruning
from raykd.recipe.models import FromConfig, Model, Pruned


def model_folder(path: str) -> Path:
    """The folder of a model: the folder itself, or the downloaded copy of a hub name. Raises ModelError."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(f"{path}: no model folder: it has no config.json")
        return folder
    if folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ModelError(f"{path}: no such model folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except Exception as error:  # the hub client raises dozens of kinds
        raise ModelError(f"{path}: no such folder, and not to be had from the hub ({type(error).__name__})") from None


def content_hash(folder: Path) -> str:
    """16 hex digits that name a model's weights, configuration and tokenizer by content.

    Raises ModelError for a folder without safetensors weights.
    """
    names = ("config.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt")
    files = sorted([*folder.glob("*.safetensors"), *(folder / n for n in names if (folder / n).exists())])
    if not any(f.suffix == ".safetensors" for f in files):
        raise ModelError(f"{folder}: no safetensors weights")
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode())
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def saved_configuration(path: str) -> Any:
    """The `transformers` configuration of a model's folder, or of a hub name. Raises ModelError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model_folder(path))
    except (ValueError, KeyError, TypeError, OSError) as error:  # no JSON, a model type that transformers lacks
        raise ModelError(f"{path}: its config.json cannot be used: {first_line(error)}") from None


def head_sizes(folder: Path) -> tuple[int, int]:
    """Vocabulary and hidden size of a model, from its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    return config.vocab_size, config.hidden_size


def parameter_count(spec: Model) -> int:
    """How many parameters a model has, without allocating them; of a model from a configuration, without embeddings."""
    import torch
    from transformers import AutoConfig, AutoModel

    if isinstance(spec, FromConfig):
        config = AutoConfig.for_model(spec.model_type, **{**spec.settings, "vocab_size": 1})
    else:
        config = saved_configuration(spec.path)
    if isinstance(spec, Pruned):
        config = pruning.configuration(config, spec)
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(config).parameters())


def known_type(model_type: str) -> Any:
    """The default configuration of a model type. Raises ModelError for a type that transformers does not have."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, list(CONFIG_MAPPING.keys()), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(f"model_type {model_type!r}: transformers knows no such model{hint}")
    return CONFIG_MAPPING[model_type]()


def is_encoder_decoder(spec: Model) -> bool:
    """Whether a model has an encoder that reads its input, and a decoder. Raises ModelError."""
    if isinstance(spec, FromConfig):
        return bool(known_type(spec.model_type).is_encoder_decoder)
    return saved_configuration(spec.path).is_encoder_decoder


def check_model(spec: Model) -> None:
    """Raises ModelError for a model that cannot be found, lacks a layer to keep, or is of a type that is not known."""
    if isinstance(spec, FromConfig):
        known_type(spec.model_type)
    elif isinstance(spec, Pruned):
        pruning.configuration(saved_configuration(spec.path), spec)
    else:
        model_folder(spec.path)
