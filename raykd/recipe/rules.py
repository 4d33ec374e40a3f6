"""The rules that span sections of a recipe, a function each.

A rule takes a recipe whose sections are right by themselves, changes nothing, and raises ValueError with one line where
the recipe breaks it. A field at its default never breaks a rule that says "does nothing": a recipe that was written out
holds every default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raykd.recipe.generation import Sampling, VllmEngine
from raykd.recipe.methods import Distill, Mckd, Own
from raykd.recipe.places import learns_from_store, roles, samplings, teacher_field

if TYPE_CHECKING:
    from raykd.recipe.recipe import Recipe


# ----------------------------------------------------------------------------------------------------- teacher, student


def only_a_classification_has_labels(recipe: Recipe) -> None:
    for name, role in roles(recipe):
        if role.task != "classification":
            if role.labels is not None:
                raise ValueError(f"{name}: labels do nothing: the task is {role.task}")
        elif role.labels is None:
            raise ValueError(f"{name}: a classification needs labels, the names of its classes in order")
        elif len(role.labels) < 2 or len(set(role.labels)) < len(role.labels):
            raise ValueError(f"{name}: labels: expected two names or more, all different, found {role.labels}")


def labels_are_the_same(recipe: Recipe) -> None:
    labels = recipe.teacher.labels, recipe.student.labels
    if all(labels) and labels[0] != labels[1]:
        raise ValueError(f"{teacher_field(recipe)}.labels {labels[0]} and student.labels {labels[1]} must be the same")


def a_task_head_writes_no_text(recipe: Recipe) -> None:
    for name, role in roles(recipe):
        if role.task == "generation":
            continue
        if role.engine.kind == "vllm":
            raise ValueError(
                f"{name}: engine: expected kind transformers for a model whose task is {role.task}, found vllm"
            )
        for field, sampling in samplings(role):
            if sampling != Sampling():
                raise ValueError(f"{name}: {field} does nothing: a model whose task is {role.task} answers once")


def a_teacher_has_the_students_task(recipe: Recipe) -> None:
    if recipe.student.training.needs_teacher() and recipe.student.task != recipe.teacher.task:
        expected = f"expected {recipe.student.task}, the student's, found {recipe.teacher.task}"
        raise ValueError(f"{teacher_field(recipe)}.task: {expected}")


def an_endpoint_model_is_behind_an_endpoint(recipe: Recipe) -> None:
    model, engine = recipe.teacher.model.kind, recipe.teacher.engine.kind
    if (model == "endpoint") != (engine == "endpoint"):
        raise ValueError(
            f"{teacher_field(recipe)}: model of kind endpoint and engine of kind endpoint go together, "
            f"found {model} and {engine}"
        )


def an_endpoint_model_is_not_fine_tuned(recipe: Recipe) -> None:
    if recipe.teacher.model.kind == "endpoint" and recipe.teacher.fine_tune:
        raise ValueError(f"{teacher_field(recipe)}: fine_tune: a model behind an endpoint cannot be trained here")


def an_endpoint_gives_texts(recipe: Recipe) -> None:
    payload = recipe.teacher.payload.kind
    if recipe.teacher.engine.kind == "endpoint" and payload not in ("auto", "text"):
        raise ValueError(f"{teacher_field(recipe)}: payload: an endpoint gives texts, found {payload}")


def no_loss_reads_an_endpoint(recipe: Recipe) -> None:
    if recipe.student.training.needs_teacher() and recipe.teacher.model.kind == "endpoint":
        raise ValueError("student.training.losses: a teacher behind an endpoint gives texts alone")


def a_student_is_behind_no_endpoint(recipe: Recipe) -> None:
    if recipe.student.engine.kind == "endpoint":
        raise ValueError("student: engine: a student answers here, found kind endpoint")


def samples_are_seeded_by_vllm(recipe: Recipe) -> None:
    for name, role in roles(recipe):
        for field, sampling in samplings(role):
            if sampling.seeded and role.engine.kind == "transformers":
                raise ValueError(f"{name}.{field}.seeded: only vllm seeds each sample, the engine is transformers")


def a_student_writes_one_sample(recipe: Recipe) -> None:
    if recipe.student.sampling.n > 1:
        raise ValueError("student.sampling.n does nothing above 1: a student answers once")


# --------------------------------------------------------------------------------------------------- tokenizer, weights


def random_weights_need_the_tokenizer(recipe: Recipe) -> None:
    random_weights = "config" in (recipe.teacher.model.kind, recipe.student.model.kind)
    if random_weights and recipe.tokenizer is None:
        raise ValueError("a model of kind config needs the section tokenizer")
    if recipe.tokenizer is not None and not random_weights:
        raise ValueError("tokenizer does nothing: both models are pretrained and bring their own")


def an_untrained_teacher_is_fine_tuned(recipe: Recipe) -> None:
    if recipe.teacher.fine_tune:
        return
    if recipe.teacher.model.kind == "config":
        raise ValueError(f"a teacher of kind config has random weights: it needs {teacher_field(recipe)}.fine_tune")
    if recipe.teacher.model.kind == "pruned":
        raise ValueError(
            f"a teacher of kind pruned lacks layers it was trained with: it needs {teacher_field(recipe)}.fine_tune"
        )


def a_fine_tuned_teacher_has_no_teacher(recipe: Recipe) -> None:
    if recipe.teacher.fine_tune and recipe.teacher.fine_tune.needs_teacher():
        raise ValueError(f"{teacher_field(recipe)}.fine_tune.losses: a teacher that is fine-tuned has no teacher")


# ----------------------------------------------------------------------------------------------------------------- data


def gold_is_there_where_it_is_needed(recipe: Recipe) -> None:
    if recipe.data.gold is not None:
        return
    if recipe.teacher.fine_tune:
        raise ValueError(f"{teacher_field(recipe)}.fine_tune needs data.gold")
    if "gold" in recipe.student.training.sequences.sources():
        raise ValueError("student.training.sequences: the source gold needs data.gold")
    if isinstance(recipe.method, Mckd) and recipe.method.gold:
        raise ValueError("method.gold needs data.gold")


def gold_has_a_use(recipe: Recipe) -> None:
    learned = "gold" in recipe.student.training.sequences.sources()
    mixed_in = isinstance(recipe.method, Mckd) and recipe.method.gold
    own = isinstance(recipe.method, Own)  # whose page may use any rows
    if recipe.data.gold is not None and not (recipe.teacher.fine_tune or learned or mixed_in or own):
        raise ValueError(f"data.gold does nothing without {teacher_field(recipe)}.fine_tune")


def dev_has_a_use(recipe: Recipe) -> None:
    own = isinstance(recipe.method, Own)
    if recipe.data.dev is not None and not (recipe.teacher.fine_tune or recipe.arms.gold_only or own):
        raise ValueError(f"data.dev does nothing without {teacher_field(recipe)}.fine_tune or arms.gold_only")


def test_rows_and_metrics_go_together(recipe: Recipe) -> None:
    if recipe.data.test is not None and not recipe.metrics:
        raise ValueError("data.test does nothing without metrics")
    if recipe.metrics and recipe.data.test is None:
        raise ValueError("metrics do nothing without data.test")
    if recipe.teacher.answering is not None and recipe.data.test is None:
        raise ValueError(f"{teacher_field(recipe)}.answering does nothing without data.test")


# ----------------------------------------------------------------------------------------------------- methods and arms


def mckd_learns_pseudo_targets(recipe: Recipe) -> None:
    sources = recipe.student.training.sequences.sources()
    if isinstance(recipe.method, Mckd) and sources != ["pseudo_targets"]:
        raise ValueError(f"student.training.sequences: mckd learns pseudo_targets, found {' and '.join(sources)}")


def texts_of_mckd_are_not_in_the_store(recipe: Recipe) -> None:
    if isinstance(recipe.method, Mckd) and recipe.method.exchange == "text" and learns_from_store(recipe):
        raise ValueError(
            "student.training.teacher: mckd's rows are texts: kind in_process or remote, found store, "
            "which goes with method.exchange: top_k"
        )


def a_regression_has_no_confidence(recipe: Recipe) -> None:
    if isinstance(recipe.method, Mckd) and recipe.method.weighting == "confidence":
        if recipe.student.task == "regression":
            raise ValueError("method.weighting: confidence is a probability, and a regression has none")


def exchanged_probabilities_are_learned(recipe: Recipe) -> None:
    if isinstance(recipe.method, Mckd) and recipe.method.exchange == "top_k" and not learns_from_store(recipe):
        raise ValueError(
            "method.exchange: top_k needs student.training.losses on probabilities, from teacher: {kind: store}"
        )


def an_arm_differs_from_the_method(recipe: Recipe) -> None:
    if recipe.arms.distilled and isinstance(recipe.method, Distill):
        raise ValueError("arms.distilled does nothing: the method is distill already")


def the_control_arm_has_dev_rows(recipe: Recipe) -> None:
    if recipe.arms.gold_only and recipe.data.dev is None:
        raise ValueError("arms.gold_only needs data.dev to choose its checkpoint")


def settings_are_of_random_weights(recipe: Recipe) -> None:
    if recipe.arms.gold_only and recipe.arms.gold_only.settings and recipe.student.model.kind != "config":
        raise ValueError("arms.gold_only.settings do nothing: student.model is pretrained")


# ------------------------------------------------------------------------------------------------- cluster and trackers


def a_replica_has_the_gpus_of_its_engine(recipe: Recipe) -> None:
    engine = recipe.teacher.engine
    parallel = engine.arguments.get("tensor_parallel_size", 1) if isinstance(engine, VllmEngine) else 1
    gpus = recipe.cluster.teacher.resources.get("GPU", 0)
    if parallel > 1 and gpus not in (0, parallel):
        raise ValueError(
            f"cluster.teacher.resources.GPU: expected {parallel}, the engine's tensor_parallel_size, found {gpus:g}"
        )


def trackers_differ(recipe: Recipe) -> None:
    kinds = [tracker.kind for tracker in recipe.trackers]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"trackers: {max(kinds, key=kinds.count)} is given twice")


RULES: tuple[Callable[[Recipe], None], ...] = (
    only_a_classification_has_labels,
    labels_are_the_same,
    a_task_head_writes_no_text,
    an_endpoint_model_is_behind_an_endpoint,
    an_endpoint_model_is_not_fine_tuned,
    an_endpoint_gives_texts,
    a_student_is_behind_no_endpoint,
    random_weights_need_the_tokenizer,
    gold_is_there_where_it_is_needed,
    gold_has_a_use,
    no_loss_reads_an_endpoint,
    a_fine_tuned_teacher_has_no_teacher,
    mckd_learns_pseudo_targets,
    texts_of_mckd_are_not_in_the_store,
    a_regression_has_no_confidence,
    exchanged_probabilities_are_learned,
    a_teacher_has_the_students_task,
    an_untrained_teacher_is_fine_tuned,
    an_arm_differs_from_the_method,
    the_control_arm_has_dev_rows,
    settings_are_of_random_weights,
    test_rows_and_metrics_go_together,
    a_replica_has_the_gpus_of_its_engine,
    samples_are_seeded_by_vllm,
    a_student_writes_one_sample,
    trackers_differ,
    dev_has_a_use,
)
