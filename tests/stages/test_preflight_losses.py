"""Losses that would end a training after the teacher was paid, and are refused before: by their exact line."""

from __future__ import annotations

import shutil

import pytest
from conftest import T5, pairs, write_rows
from test_preflight import BERT, CLASSES, IN_PROCESS, JSD, OWN, TRAINING, checkpoint, line, recipe, student

from raykd.models.tokenizers import build_tokenizer
from raykd.recipe.models import WordsTokenizer
from raykd.run.session import Session
from raykd.stages.preflight import preflight

CROSS_ENTROPY = {"cross_entropy": {}}
HIDDEN = "raykd.losses.features:HiddenMse"  # as a loss of a user's own
MSE = {"kind": "raykd.losses.divergences:mse", "teacher_outputs": False}


def features(losses: dict, student: str = "bert", teacher: str = "bert", **changes) -> dict:
    """Changes that make both models classify, and the student learn these losses."""
    changes |= {f"teachers__main__{name}": value for name, value in CLASSES.items()}
    changes |= {f"student__{name}": value for name, value in CLASSES.items()}
    return {
        "teachers__main__model": {"kind": "checkpoint", "path": f"FOLDER/{teacher}"},
        "teachers__main__passes__pseudo_targets": {},
        "teachers__main__prompt": "{input}",
        "student__model": {"kind": "checkpoint", "path": f"FOLDER/{student}"},
        "student__sampling": {},
        "student__training": {**TRAINING, "losses": losses, "teacher": {"kind": "in_process"}},
        **changes,
    }


def hidden(**fields) -> dict:
    return {**CROSS_ENTROPY, "hidden_mse": fields}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared_tokenizer, tiny_models):
    """Rows and models that recipes name."""
    folder = tmp_path_factory.mktemp("losses")
    write_rows(folder / "rows.jsonl", pairs(80))
    shutil.copytree(tiny_models["llama"], folder / "llama")
    build_tokenizer(WordsTokenizer(kind="words"), ["other words"], folder / "words")
    two = {"task": "classification", "labels": CLASSES["labels"]}
    checkpoint(folder / "bert", "bert", BERT, shared_tokenizer, **two)
    checkpoint(folder / "other_bert", "bert", {**BERT, "hidden_size": 32}, folder / "words", **two)
    checkpoint(
        folder / "albert", "albert", {**BERT, "num_hidden_layers": 2, "embedding_size": 8}, shared_tokenizer, **two
    )
    checkpoint(folder / "t5_classes", "t5", T5, shared_tokenizer, **two)
    return folder


# changes of the recipe, the line
REFUSED = [
    (
        features(hidden(student_layer=3)),
        "student.training.losses.hidden_mse.student_layer: the student has hidden states 0 to 1, or -2 to -1; found 3",
    ),
    (
        features({**CROSS_ENTROPY, "last": {"kind": "cross_correlation", "keep": 0.5, "teacher_layer": -3}}),
        "student.training.losses.last.teacher_layer: the teacher has hidden states 0 to 1, or -2 to -1; found -3",
    ),
    (
        features({**CROSS_ENTROPY, "own": {"kind": HIDDEN, "options": {"student_layer": 2}}}),
        "student.training.losses.own: the student has hidden states 0 to 1, or -2 to -1; found 2",
    ),
    (
        features(hidden(), student="albert"),
        "student.training.losses.hidden_mse.student_layer: AlbertModel does not hold its 2 layers in one list, so none "
        "can be pruned",
    ),
    (
        features(hidden(), teacher="t5_classes"),
        "student.training.losses.hidden_mse.teacher_layer: T5ForSequenceClassification: hidden states of "
        "encoder-decoders are not compared yet",
    ),
    (
        features(hidden(), teachers__main__prompt="{input} =>"),
        "student.training.losses.hidden_mse: hidden states are compared token by token, and student and teacher read "
        "other tokens of row r0: ",
    ),
    (
        features(hidden(), teacher="other_bert"),
        "student.training.losses.hidden_mse: hidden states are compared token by token, and student and teacher read "
        "other tokens of row r0: ",
    ),
    (
        features({"own": {"kind": HIDDEN}}),
        "student.training: losses on hidden states alone train no head: give one on targets or logits too",
    ),
    (
        features({**CROSS_ENTROPY, **JSD["losses"], "own": MSE}),
        "student.training: losses.own: computes on numbers, a classification needs a loss on logits",
    ),
    (
        {"student__model": OWN, **student(losses={"own": MSE})},
        "student.training: losses.own: computes on numbers, a generation needs a loss on logits",
    ),
    (
        {"student__model": OWN, **student(**{**IN_PROCESS, "losses": {**CROSS_ENTROPY, "own": {"kind": HIDDEN}}})},
        "student.training: losses.own: compares hidden states of encoders, found a generation",
    ),
]
RIGHT = [
    features(hidden(student_layer=0, teacher_layer=-2)),
    features({**hidden(), "cross_correlation": {"keep": 0.5}, "own": {"kind": HIDDEN}}),
    features(hidden(), teachers__main__prompt={"kind": "completion", "template": "{input}"}),
    {
        **features({"own": MSE}),
        "student__training": {**TRAINING, "losses": {"own": MSE}},
        **{f"{role}__task": "regression" for role in ("student", "teachers__main")},
        **{f"{role}__labels": None for role in ("student", "teachers__main")},
        "student__model": {"kind": "config", "model_type": "bert", "settings": BERT},
        "teachers__main__engine": {"kind": "scripted"},
    },
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_losses_that_cannot_be_computed_are_one_line_before_the_teacher_is_paid(folder, tmp_path, changes, words):
    text = line(Session(recipe(folder, tmp_path, changes)), folder)
    assert text.startswith(words) and (text == words or words.endswith(": ")) and "\n" not in text and len(text) <= 600
    assert not list((tmp_path / "runs").rglob("teacher/manifest.json"))


@pytest.mark.parametrize("changes", RIGHT)
def test_losses_that_can_be_computed_are_let_through(folder, tmp_path, changes):
    with Session(recipe(folder, tmp_path, changes)) as session:
        preflight(session)
    assert {path.parent.name for path in session.path.rglob("manifest.json")} <= {"data", "tokenizer"}
