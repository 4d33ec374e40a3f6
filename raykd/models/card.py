"""The model card of a trained model: a `README.md` as the Hugging Face hub reads it; and publishing the folder.

A card says what the model is, how it was trained and how to train it again. It holds no secret, and of the paths of
the machine only those that the recipe names.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from raykd.errors import ModelError
from raykd.run.files import write_text

CARD = "README.md"
BEGIN, END = "<!-- scores -->", "<!-- end of scores -->"
PATH = re.compile(r"(?<![\w:/.~])/(?:[^\s/'\"`|<>=:,;]+/)+[^\s/'\"`|<>=:,;]*")
# names of secrets: api_key, hf_token; but not max_tokens, tokenizer, or the tokens that every model has
SECRET_NAME = (
    r"(?!\w*(?:pad|eos|bos|unk|sep|cls|mask|stop)_token\b)"
    r"(?:\w*_)?(?:token|password|passwd|secret|api_?key|access_?key|credentials?)"
)
SECRET = re.compile(
    rf"((?:^|[\s{{,.'\"-]){SECRET_NAME}['\"]?\s*[:=]\s*)(?!null\b|\{{|\[)('[^'\n]*'|\"[^\"\n]*\"|[^\s,}}'\"]+)",
    re.I | re.M,
)
KNOWN_SECRET = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[\w-]{20,})")
IN_ADDRESS = re.compile(r"(?<=://)[^\s/@]+@")
HIDDEN = "[hidden]"
TEXTS = ("name", "arm", "method", "teacher", "student", "data", "losses", "command")


@dataclass(frozen=True)
class Card:
    """The contents of a card. Texts are a sentence or less; `recipe` is the resolved YAML."""

    name: str  # of the run
    arm: str  # or the stage that trained the model
    method: str
    teacher: str
    student: str
    data: str  # path or name, counts, licence
    losses: str
    command: str  # makes the model again
    recipe: str
    seed: int
    base_model: str | None = None  # its name on the hub, of a student that began with weights
    scores: Mapping[str, float] = field(default_factory=dict)  # by metric
    versions: Mapping[str, str] = field(default_factory=dict)  # by package


def write_card(folder: Path, card: Card) -> None:
    """Write `README.md` into a model's folder. Raises RunError where it cannot be written."""
    public = _public(card)
    rows = {
        "method": public.method,
        "teacher": public.teacher,
        "student": public.student,
        "data": public.data,
        "losses": public.losses,
        "seed": str(public.seed),
    }
    versions = ", ".join(_safe(f"{package} {version}") for package, version in public.versions.items())
    parts = [
        f"---\n{_front_matter(public)}---",
        f"# {_safe(public.name)}: {_safe(public.arm)}",
        "A model distilled with raykd: a small student taught by a large teacher.",
        _table(("", ""), rows),
        "## Scores",
        _scores(public.scores),
        "## Make it again",
        "With the recipe below as `recipe.yaml`:",
        _fenced(public.command, "sh"),
        *([f"Made with {versions}."] if versions else []),
        f"<details><summary>The recipe, resolved</summary>\n\n{_fenced(public.recipe, 'yaml')}\n\n</details>",
    ]
    write_text(Path(folder) / CARD, "\n\n".join(parts) + "\n")


def write_scores(folder: Path, scores: Mapping[str, float]) -> None:
    """Put scores, by metric, into the card of a folder, in place of those it has.

    Raises ModelError where there is no card, or none that `write_card` wrote.
    """
    path = Path(folder) / CARD
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ModelError(f"{path}: no model card") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ModelError(f"{path}: a model card without a place for scores: {BEGIN} ... {END}")
    write_text(path, before + _scores(scores) + after)


def push(folder: Path, repo: str, private: bool) -> str:
    """Publish a model's folder on the Hugging Face hub; returns its address.

    The token is the hub's own: HF_TOKEN, or `hf auth login`. Raises ModelError where the hub refuses, and where a
    model that is to be private would land in a repository that is public.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"{folder}: no model to publish: it has no config.json")
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(repo, private=private, repo_type="model", exist_ok=True))
        public = private and not api.model_info(repo).private  # create_repo leaves one that exists as it is
        if not public:
            api.upload_folder(repo_id=repo, folder_path=str(folder), repo_type="model", ignore_patterns=[".*", "**/.*"])
    except Exception as error:  # the hub, its transport and the disk each raise their own
        reason = _without_known_secrets(" ".join(f"{type(error).__name__}: {error}".split()))
        raise ModelError(f"{repo}: cannot be published: {reason[:300]}") from None
    if public:
        raise ModelError(f"{repo}: exists and is public, push_to_hub.private is true: nothing was published")
    return address


def _public(card: Card) -> Card:
    """The same card without secrets, and without paths that the recipe does not name."""
    recipe = _without_known_secrets(_without_named_secrets(card.recipe))

    def public(text: str) -> str:
        text = _without_known_secrets(text)
        return PATH.sub(lambda path: path[0] if path[0] in recipe else Path(path[0]).name, text)

    return replace(card, recipe=recipe, **{name: public(getattr(card, name)) for name in TEXTS})


def _without_named_secrets(recipe: str) -> str:
    """The recipe with every value hidden whose field is named as a secret; unchanged where there is none."""

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: HIDDEN if _is_secret(k) and v is not None else hide(v) for k, v in value.items()}
        return [hide(v) for v in value] if isinstance(value, list) else value

    try:
        tree = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return recipe
    safe = hide(tree)
    return recipe if safe == tree else yaml.safe_dump(safe, sort_keys=False, allow_unicode=True)


def _is_secret(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(SECRET_NAME, name, re.I) is not None


def _without_known_secrets(text: str) -> str:
    """A text without secrets, as far as the text around them, or their form, shows what they are."""
    text = SECRET.sub(rf"\1{HIDDEN!r}", text)
    return IN_ADDRESS.sub("", KNOWN_SECRET.sub(HIDDEN, text))


def _front_matter(card: Card) -> str:
    """The front matter, as YAML."""
    fields: dict[str, object] = {"library_name": "transformers"}
    if card.base_model and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", card.base_model):  # a folder is no name
        fields["base_model"] = card.base_model
    fields["tags"] = ["knowledge-distillation", "raykd"]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _scores(scores: Mapping[str, float]) -> str:
    table = _table(("metric", "value"), {name: f"{value:.4g}" for name, value in scores.items()})
    return "\n\n".join([BEGIN, table if scores else "Not scored.", END])


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {_safe(name)} | {_safe(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {head[0]} | {head[1]} |", "| --- | --- |", *lines])


def _safe(text: str) -> str:
    """A text with markdown and HTML escaped, on one line."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", plain)


def _fenced(text: str, language: str) -> str:
    """A block of code; its fence is longer than any fence in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
