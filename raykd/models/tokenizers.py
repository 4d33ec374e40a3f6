"""Tokenizers: build, load, encode inputs and targets, name by content, and check that two agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raykd.errors import ModelError
from raykd.recipe.models import PretrainedTokenizer, Tokenizer
from raykd.run.files import fingerprint

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def build_tokenizer(spec: Tokenizer, texts: list[str], folder: Path, generates: bool = True) -> None:
    """Save into `folder` the tokenizer that models with random weights use; it has a token for each word of `texts`.

    generates: as in `load_tokenizer`. Raises ModelError.
    """
    if isinstance(spec, PretrainedTokenizer):
        load_tokenizer(spec.path, generates).save_pretrained(folder)
        return
    from tokenizers import Tokenizer as Words
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in text.split()} - {PAD, END, UNKNOWN})
    vocabulary = [PAD, END, UNKNOWN, *(w for w in dict.fromkeys(spec.extra) if w not in words), *words]
    backend = Words(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    tokenizer.save_pretrained(folder)


def load_tokenizer(path: str | Path, generates: bool = True) -> Any:
    """A tokenizer with a padding token and, where the model `generates`, an end-of-sequence token.

    Raises ModelError where there is no tokenizer, or none with such a token.
    """
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


def tokenizer_mark(path: str) -> str:
    """12 hex digits that name what a tokenizer does."""
    tokenizer = load_tokenizer(path, generates=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend else sorted(tokenizer.get_vocab().items())
    return fingerprint([content, tokenizer.special_tokens_map, tokenizer.chat_template])


PROBES = (
    "The quick brown fox, aged 42.5, can't jump over 13 lazy dogs!",
    "def f(x):\n\treturn x['a'] ** 2  # 3 spaces",
    "naïve façade — “Straße” žluťoučký kůň Ελληνικά русский עברית العربية हिन्दी 日本語 中文 한국어 🙂👩‍🚀",
    "https://example.org/a_b?c=%20&d=1e-5 <b>tag</b> \\alpha_{ij} $5,000 100% A.B.C.",
    "  leading, double  and trailing spaces  ",
)


def shared_vocab_size(student: Any, teacher: Any) -> int:
    """How many token ids mean the same to both tokenizers. Logits beyond are padding, or tokens of one: cut them off.

    Widths prove nothing: models pad their vocabularies, and two tokenizers can be as wide by chance. So both encode
    the same texts: PROBES, and the texts of a sample of each tokenizer's own tokens. Raises ModelError with the first
    text that they encode differently.
    """
    size = min(len(student), len(teacher))
    sample = range(0, size, max(1, size // 1000))
    for text in (*PROBES, *(t.decode([i]) for t in (student, teacher) for i in sample)):
        student_ids, teacher_ids = (t(text, add_special_tokens=False).input_ids for t in (student, teacher))
        if student_ids != teacher_ids:
            shown = f"{text[:40]!r} is {student_ids[:6]} to the student's and {teacher_ids[:6]} to the teacher's"
            raise ModelError(f"the tokenizers differ, so token-level losses have no meaning: {shown}")
    return size


def encode_inputs(tokenizer: Any, texts: list[str], encoder: bool, special_tokens: bool = True) -> list[list[int]]:
    """Token ids of prompts: with one end token for an `encoder`, with none before a causal model's continuation.

    special_tokens: add the tokenizer's own, such as a beginning; a chat template has written them already. Training
    and every engine encode with this function, so that a served model reads the token ids that it was trained on.
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
