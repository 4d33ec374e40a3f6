"""Models and tokenizers: load, build from a configuration, encode, name by content."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raykd import cuts
from raykd.errors import ModelError
from raykd.recipe import Cut, FromConfig, Lora, Model, PretrainedTokenizer, Task, Tokenizer
from raykd.run import fingerprint

EMBEDDED = 8192  # padded tokens that are embedded at once
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def local(path: str) -> Path:
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
    """16 hex digits that name a model's weights, configuration and tokenizer by content."""
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


def build_tokenizer(spec: Tokenizer, texts: list[str], folder: Path, generates: bool = True) -> None:
    """Save into `folder` the tokenizer that models with random weights use; texts are those it must know.

    `generates`: as of `load_tokenizer`.
    """
    if isinstance(spec, PretrainedTokenizer):
        load_tokenizer(spec.path, generates).save_pretrained(folder)
        return
    from tokenizers import Tokenizer as Words
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in text.split()} - {PAD, END, UNKNOWN})
    vocabulary = [PAD, END, UNKNOWN, *(w for w in dict.fromkeys(spec.extra) if w not in words), *words]
    made = Words(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=END, unk_token=UNKNOWN).save_pretrained(
        folder
    )


def load_tokenizer(path: str | Path, generates: bool = True) -> Any:
    """A tokenizer with a padding token and, for a model that writes, an end-of-sequence token. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no tokenizer: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None and generates:
        raise ModelError(f"{path}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def configuration(spec: FromConfig, tokenizer: Any) -> Any:
    """The `transformers` configuration of a model with random weights. Raises ModelError for unknown settings."""
    from transformers import AutoConfig

    try:
        known = AutoConfig.for_model(spec.model_type).to_dict()
    except ValueError:
        raise ModelError(f"model_type {spec.model_type!r}: transformers knows no such model") from None
    for name in spec.settings:
        if name not in known:  # transformers would keep it and ignore it
            near = difflib.get_close_matches(name, known, n=1)
            raise ModelError(f"settings.{name}: {spec.model_type} has no such setting{near and f'; {near[0]}?' or ''}")
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["bos_token_id"] = tokenizer.bos_token_id
    if known.get("is_encoder_decoder"):
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    return AutoConfig.for_model(spec.model_type, **{**ids, **spec.settings})


def load(spec: Model, tokenizer: Any, task: Task = "generation", labels: list[str] | None = None) -> Any:
    """A model in float32 on the CPU, as wide as the tokenizer needs, with the head of its task.

    Random weights, such as those of a head that a checkpoint lacks, come from torch's seed. labels are the names of a
    classification's classes, in order. Raises ModelError for what does not fit.
    """
    import transformers

    config = configuration(spec, tokenizer) if isinstance(spec, FromConfig) else _pretrained(spec.path)
    if task == "generation":
        family: Any = getattr(transformers, f"AutoModelFor{'Seq2SeqLM' if config.is_encoder_decoder else 'CausalLM'}")
    else:
        family = getattr(
            transformers, f"AutoModelFor{'QuestionAnswering' if task == 'span' else 'SequenceClassification'}"
        )
        if type(config) not in family._model_mapping:
            raise ModelError(f"transformers has no {config.model_type} model for the task {task}")
        config.pad_token_id = tokenizer.pad_token_id
        if task != "span":
            _name_classes(config, labels, "" if isinstance(spec, FromConfig) else spec.path)
    if isinstance(spec, FromConfig):
        model = family.from_config(config)
    else:
        model = family.from_pretrained(local(spec.path), config=config, dtype="float32")
    if isinstance(spec, Cut):
        model = cuts.cut(model, spec)
    embedding: Any = model.get_input_embeddings()
    width = embedding.weight.shape[0]
    if width < len(tokenizer):
        raise ModelError(f"the model embeds {width} tokens, its tokenizer has {len(tokenizer)}")
    return model


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


def blocks(model: Any) -> list[Any]:
    """The layers a model repeats: what is compiled, or split among workers, one by one."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def tokenizer_mark(path: str) -> str:
    """12 hex digits that name what a tokenizer does."""
    tokenizer = load_tokenizer(path, generates=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    what = backend.to_str() if backend else sorted(tokenizer.get_vocab().items())
    return fingerprint([what, tokenizer.special_tokens_map, tokenizer.chat_template])


def saved_configuration(folder: str) -> Any:
    """The configuration of a model's folder, or of a hub name."""
    return _pretrained(folder)


def _pretrained(path: str) -> Any:
    """The configuration of a pretrained model."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(local(path))


def _name_classes(config: Any, labels: list[str] | None, path: str) -> None:
    """Make a configuration that of a classification by the labels, of a regression without; path: its checkpoint's.

    Raises ModelError where the checkpoint has been trained to tell other classes apart.
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
    """A function from texts to the means of an encoder's last hidden states (N, H), float32, of length 1."""
    import torch
    from transformers import AutoModel

    from raykd import batches

    tokenizer = load_tokenizer(local(path), generates=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(local(path), dtype="float32").to(device).eval()
    longest = min(512, getattr(model.config, "max_position_embeddings", 512))

    @torch.inference_mode()
    def embed(texts: list[str]) -> np.ndarray:
        rows = [ids[:longest] or [tokenizer.pad_token_id] for ids in tokenizer(texts)["input_ids"]] if texts else []
        found = np.zeros((len(rows), model.config.hidden_size), np.float32)
        for piece in batches.by_length([len(ids) for ids in rows], EMBEDDED):
            tensors = batches.pad_right([rows[i] for i in piece], tokenizer.pad_token_id)
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            hidden_BTH, mask_BT1 = model(**tensors).last_hidden_state, tensors["attention_mask"][..., None]
            means_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
            found[piece] = torch.nn.functional.normalize(means_BH, dim=1).cpu().numpy()
        return found

    return embed


def sizes(folder: Path) -> tuple[int, int]:
    """Vocabulary and hidden size of a model, from its configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    return config.vocab_size, config.hidden_size


def parameters(spec: Model) -> int:
    """Parameters of a model, counted without making them; embeddings of a model from a configuration are left out."""
    import torch
    from transformers import AutoConfig, AutoModel

    if isinstance(spec, FromConfig):
        config = AutoConfig.for_model(spec.model_type, **{**spec.settings, "vocab_size": 1})
    else:
        config = _pretrained(spec.path)
    if isinstance(spec, Cut):
        config = cuts.configuration(config, spec)
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModel.from_config(config).parameters())


def is_encoder_decoder(spec: Model) -> bool:
    """Whether a model reads its input with an encoder of its own."""
    from transformers import AutoConfig

    if isinstance(spec, FromConfig):
        return bool(AutoConfig.for_model(spec.model_type).is_encoder_decoder)
    return _pretrained(spec.path).is_encoder_decoder


def check(spec: Model) -> None:
    """Raises ModelError where a pretrained model is not to be had, or lacks a layer that is to be kept."""
    if isinstance(spec, Cut):
        cuts.configuration(_pretrained(spec.path), spec)
    elif not isinstance(spec, FromConfig):
        local(spec.path)


PROBES = (
    "The quick brown fox, aged 42.5, can't jump over 13 lazy dogs!",
    "def f(x):\n\treturn x['a'] ** 2  # 3 spaces",
    "naïve façade — “Straße” žluťoučký kůň Ελληνικά русский עברית العربية हिन्दी 日本語 中文 한국어 🙂👩‍🚀",
    "https://example.org/a_b?c=%20&d=1e-5 <b>tag</b> \\alpha_{ij} $5,000 100% A.B.C.",
    "  leading, double  and trailing spaces  ",
)


def shared_columns(student: Any, teacher: Any) -> int:
    """How many token ids mean the same to both tokenizers: logits beyond are padding, or tokens of one alone; cut them.

    Widths prove nothing: models pad their vocabularies, and two tokenizers can be as wide by chance. So both encode
    the same texts: PROBES, and what a sample of each one's own tokens stands for. Raises ModelError with the first
    text that they encode differently.
    """
    columns = min(len(student), len(teacher))
    sample = range(0, columns, max(1, columns // 1000))
    for text in (*PROBES, *(t.decode([i]) for t in (student, teacher) for i in sample)):
        one, other = (t(text, add_special_tokens=False).input_ids for t in (student, teacher))
        if one != other:
            shown = f"{text[:40]!r} is {one[:6]} to the student's and {other[:6]} to the teacher's"
            raise ModelError(f"the tokenizers differ, so token-level losses have no meaning: {shown}")
    return columns


def encode_inputs(tokenizer: Any, texts: list[str], encoder: bool, special_tokens: bool = True) -> list[list[int]]:
    """Token ids of prompts: one end token for an encoder, none before a causal model's continuation.

    special_tokens adds the tokenizer's own, such as a beginning; a chat template has written them already. Training
    and every engine encode through here, so that a served model reads what it was trained to read.
    """
    end: int = tokenizer.eos_token_id
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=special_tokens).input_ids if texts else []
    bare = [row[:-1] if row and end is not None and row[-1] == end else row for row in rows]
    return [[*row, end] if encoder else row for row in bare]


def encode_targets(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of targets, each closed by one end token."""
    end = tokenizer.eos_token_id
    rows = tokenizer(text_target=texts, add_special_tokens=False).input_ids if texts else []
    return [[*row, end] for row in rows]
