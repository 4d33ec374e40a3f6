"""Models from a folder or with random weights, ready to train or to generate; texts as embeddings of an encoder."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from raykd.errors import ModelError, last_line
from raykd.models import pruning
from raykd.models.files import known_type, model_folder, saved_configuration
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.models import FromConfig, Model, Pruned, Task

EMBEDDED = 8192  # padded tokens of a batch of texts to embed


def model_configuration(spec: FromConfig, tokenizer: Any) -> Any:
    """The `transformers` configuration of a model with random weights. Raises ModelError for unknown settings."""
    from transformers import AutoConfig

    defaults = known_type(spec.model_type).to_dict()
    for name in spec.settings:
        if name not in defaults:  # transformers would keep it and ignore it
            near = difflib.get_close_matches(name, defaults, n=1)
            raise ModelError(f"settings.{name}: {spec.model_type} has no such setting{near and f'; {near[0]}?' or ''}")
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["bos_token_id"] = tokenizer.bos_token_id
    if defaults.get("is_encoder_decoder"):
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    try:
        return AutoConfig.for_model(spec.model_type, **{**ids, **spec.settings})
    except Exception as error:  # each configuration checks itself in its own way
        raise ModelError(f"settings of {spec.model_type}: {last_line(error)}") from None


def configuration_with_head(spec: Model, tokenizer: Any, task: Task, labels: list[str] | None) -> tuple[Any, Any]:
    """(configuration, family) of a model with the head of its task; the family is an `AutoModelFor...` class.

    A pruned model's configuration is still that of the larger model. Raises ModelError for what does not fit.
    """
    import transformers

    config = model_configuration(spec, tokenizer) if isinstance(spec, FromConfig) else saved_configuration(spec.path)
    head = {
        "generation": "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM",
        "extractive_qa": "QuestionAnswering",
    }
    family: Any = getattr(transformers, f"AutoModelFor{head.get(task, 'SequenceClassification')}")
    if type(config) not in family._model_mapping:
        raise ModelError(f"transformers has no {config.model_type} model for the task {task}")
    if task != "generation":
        config.pad_token_id = tokenizer.pad_token_id
        if task != "extractive_qa":
            _name_classes(config, labels, "" if isinstance(spec, FromConfig) else spec.path)
    return config, family


def load_model(spec: Model, tokenizer: Any, task: Task = "generation", labels: list[str] | None = None) -> Any:
    """A model in float32 on the CPU, as wide as the tokenizer needs, with the head of its task.

    Random weights, such as those of a head that a checkpoint lacks, come from torch's seed. labels are the names of a
    classification's classes, in order. Raises ModelError for what does not fit.
    """
    config, family = configuration_with_head(spec, tokenizer, task, labels)
    if isinstance(spec, FromConfig):
        model = family.from_config(config)
    else:
        model = family.from_pretrained(model_folder(spec.path), config=config, dtype="float32")
    if isinstance(spec, Pruned):
        model = pruning.prune(model, spec)
    embedding: Any = model.get_input_embeddings()
    width = embedding.weight.shape[0]
    if width < len(tokenizer):
        raise ModelError(f"the model embeds {width} tokens, its tokenizer has {len(tokenizer)}")
    return model


def model_blocks(model: Any) -> list[Any]:
    """The layers a model repeats, which are compiled, or split among workers, one by one."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _name_classes(config: Any, labels: list[str] | None, path: str) -> None:
    """Write the labels of a classification into a configuration, or without labels a regression's one number.

    `path` is its checkpoint's, empty for random weights. Raises ModelError where the checkpoint has been trained for
    other classes.
    """
    before = [config.id2label[i] for i in sorted(config.id2label)]
    trained = path and any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    named = before != [f"LABEL_{i}" for i in range(len(before))]
    if trained and (len(before) != len(labels or [""]) or (labels and named and before != labels)):
        raise ModelError(f"{path} has been trained for the classes {before}, in this order, not {labels or 'a number'}")
    names = labels or ["LABEL_0"]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = "single_label_classification" if labels else "regression"


def embedder(path: str) -> Callable[[list[str]], np.ndarray]:
    """A function from N texts to the means of an encoder's last hidden states: (N, H) float32, rows of length 1.

    path: the encoder's folder or hub name. A text without tokens is embedded as one padding token. Raises ModelError.
    """
    import torch
    from transformers import AutoModel

    from raykd.training import batches

    tokenizer = load_tokenizer(model_folder(path), generates=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(model_folder(path), dtype="float32").to(device).eval()
    longest = min(512, getattr(model.config, "max_position_embeddings", 512))

    @torch.inference_mode()
    def embed(texts: list[str]) -> np.ndarray:
        rows = [ids[:longest] or [tokenizer.pad_token_id] for ids in tokenizer(texts)["input_ids"]] if texts else []
        embeddings_NH = np.zeros((len(rows), model.config.hidden_size), np.float32)
        for batch in batches.by_length([len(ids) for ids in rows], EMBEDDED):
            tensors = batches.pad_right([rows[i] for i in batch], tokenizer.pad_token_id)
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            hidden_BTH, mask_BT1 = model(**tensors).last_hidden_state, tensors["attention_mask"][..., None]
            means_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
            embeddings_NH[batch] = torch.nn.functional.normalize(means_BH, dim=1).cpu().numpy()
        return embeddings_NH

    return embed
