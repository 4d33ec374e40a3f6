"""The rules about losses, sequences, pseudo-targets and the teacher's outputs, as those in `rules`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raykd.recipe.losses import OwnLoss, SoftCrossEntropy
from raykd.recipe.methods import Distill
from raykd.recipe.places import learns_from_store, teacher_field, trainings
from raykd.recipe.training import OutputsByOrigin, StoredOutputs

if TYPE_CHECKING:
    from raykd.recipe.recipe import Recipe


# -------------------------------------------------------------------------------------------------------------- losses


def losses_are_of_the_task(recipe: Recipe) -> None:
    for name, role, training in trainings(recipe):
        place = name.rpartition(".")[0]
        for loss_name, loss in training.losses.items():
            if isinstance(loss, OwnLoss):  # what it computes on is known when it is imported: see stages/preflight
                continue
            if loss.features and role.task == "generation":
                raise ValueError(f"{place}: losses.{loss_name} compares hidden states of encoders, found a generation")
            if not loss.features and loss.regression != (role.task == "regression"):
                expected = "mse and teacher_mse" if role.task == "regression" else "those on logits"
                raise ValueError(f"{place}: losses of a {role.task} are {expected}, found {loss_name}")
        if all(loss.features for loss in training.losses.values()):
            raise ValueError(f"{place}: losses on hidden states alone train no head: give one on targets or logits too")


def losses_count_for_something(recipe: Recipe) -> None:
    for name, _, training in trainings(recipe):
        if not any(loss.weight for loss in training.losses.values()):
            raise ValueError(f"{name}.losses: every weight is 0, so nothing would be learnt")


def a_task_head_is_taught_in_process(recipe: Recipe) -> None:
    for name, role, training in trainings(recipe):
        kind = training.outputs_for(sampled=False).kind
        if role.task != "generation" and training.needs_teacher() and kind != "in_process":
            raise ValueError(f"{name}.teacher: expected kind in_process for a {role.task}, found {kind}")


# ------------------------------------------------------------------------------------------------------- pseudo-targets


def a_vote_has_several_samples(recipe: Recipe) -> None:
    if recipe.pseudo_targets.vote and recipe.teacher.sampling.n < 2:
        name = f"{teacher_field(recipe)}.passes.{recipe.teacher.pass_name}"
        raise ValueError(f"pseudo_targets.vote: a vote needs {name}.n of 2 or more")


def selected_pseudo_targets_are_texts(recipe: Recipe) -> None:
    if recipe.pseudo_targets.selects() and learns_from_store(recipe):
        raise ValueError("pseudo_targets: what is chosen are texts: student.training.teacher in_process or remote")


def selected_pseudo_targets_are_learned(recipe: Recipe) -> None:
    stored = recipe.student.training.sequences.stored()
    if recipe.pseudo_targets.selects() and "gold" in stored:
        raise ValueError(f"pseudo_targets: chosen ones are learnt alone, found sequences of {' and '.join(stored)}")


def all_are_written_before_some_are_selected(recipe: Recipe) -> None:
    if recipe.pseudo_targets.selects() and isinstance(recipe.method, Distill) and recipe.method.overlap:
        raise ValueError(
            "method.overlap: pseudo-targets are chosen when all are there: no pseudo_targets.vote, retries, invalid"
        )


# ------------------------------------------------------------------------------------------------------------- training


def the_source_of_outputs_has_a_use(recipe: Recipe) -> None:
    for name, _, training in trainings(recipe):
        if not training.needs_teacher() and not training.is_default("teacher"):
            raise ValueError(f"{name}.teacher does nothing: {' and '.join(training.losses)} needs no teacher")
        if isinstance(training.teacher, OutputsByOrigin):
            if not training.sequences.samplers():
                raise ValueError(
                    f"{name}.teacher.sampled does nothing: sequences has no source that writes in each step"
                )
            if training.teacher.sampled == training.teacher.stored:
                raise ValueError(f"{name}.teacher: stored and sampled are the same: give one section for both")
            if training.teacher.stored.kind != "store":
                raise ValueError(f"{name}.teacher.stored: expected kind store, found {training.teacher.stored.kind}")


def new_samples_have_a_live_teacher(recipe: Recipe) -> None:
    for name, role, training in trainings(recipe):
        samplers = training.sequences.samplers()
        if not samplers:
            continue
        if role.task != "generation":
            raise ValueError(f"{name}.sequences: a model whose task is {role.task} writes no {samplers[0]} samples")
        if not training.needs_teacher():
            losses = " and ".join(training.losses)
            raise ValueError(
                f"{name}.sequences: {losses} on new samples would teach nothing: give a loss with a teacher"
            )
        if training.outputs_for(sampled=True).kind == "store":
            raise ValueError(
                f"{name}.teacher: new samples are not in the store: expected kind in_process or remote, or "
                "{stored: {kind: store}, sampled: {kind: in_process}}"
            )


def students_in_parts_write_no_samples(recipe: Recipe) -> None:
    if recipe.student.training.sequences.samplers() and recipe.cluster.student.parallel == "fsdp":
        raise ValueError("student.training.sequences: new samples are not written by a student in parts (fsdp) yet")


def passes_are_the_teachers(recipe: Recipe) -> None:
    known = sorted({"pseudo_targets", recipe.teacher.pass_name})
    for name in recipe.student.training.sequences.passes():
        if name not in known:
            raise ValueError(
                f"student.training.sequences: no source {name!r:.40}; expected gold, student, {', '.join(known)} or "
                "module:NAME"
            )


def only_a_top_k_has_a_tail(recipe: Recipe) -> None:
    source, payload = recipe.student.training.outputs_for(sampled=False), recipe.teacher.payload.kind
    if not isinstance(recipe.method, Distill):  # students of mckd record their top-k, whatever the teacher records
        return
    if isinstance(source, StoredOutputs) and not source.is_default("tail") and payload in ("sampled", "hidden"):
        raise ValueError(f"student.training.teacher.tail does nothing: {teacher_field(recipe)}.payload is {payload}")


def texts_teach_no_distribution(recipe: Recipe) -> None:
    if isinstance(recipe.method, Distill) and learns_from_store(recipe) and recipe.teacher.payload.kind == "text":
        name = recipe.student.training.teacher_losses()[0]
        raise ValueError(
            f"student.training.losses.{name} reads the teacher's probabilities from the store: "
            f"{teacher_field(recipe)}.payload: expected top_k, sampled or hidden, found text"
        )


def gold_targets_are_not_in_the_store(recipe: Recipe) -> None:
    if "gold" in recipe.student.training.sequences.sources() and learns_from_store(recipe):
        raise ValueError("student.training.teacher: gold targets are not in the store: in_process or remote")


def draws_are_of_losses_that_work_with_them(recipe: Recipe) -> None:
    if not isinstance(recipe.method, Distill) or not learns_from_store(recipe):
        return
    training = recipe.student.training
    for name in training.teacher_losses() if recipe.teacher.payload.kind == "sampled" else ():
        loss = training.losses[name]
        if not isinstance(loss, SoftCrossEntropy) or loss.temperature != 1:
            raise ValueError(
                f"student.training.losses.{name}: {teacher_field(recipe)}.payload is sampled, and drawn tokens serve "
                "soft_cross_entropy at temperature 1 alone"
            )


def a_fine_tuned_teacher_learns_gold_alone(recipe: Recipe) -> None:
    if recipe.teacher.fine_tune and not recipe.teacher.fine_tune.is_default("sequences"):
        raise ValueError(f"{teacher_field(recipe)}.fine_tune.sequences does nothing: a teacher learns data.gold")


def dev_rows_replace_a_holdout(recipe: Recipe) -> None:
    fine_tune = recipe.teacher.fine_tune
    if fine_tune and recipe.data.dev is not None and not fine_tune.is_default("holdout"):
        raise ValueError(f"{teacher_field(recipe)}.fine_tune.holdout does nothing: data.dev chooses the checkpoint")


def a_task_head_writes_no_tokens(recipe: Recipe) -> None:
    for name, role, training in trainings(recipe):
        for field in ("max_target_tokens", "long_targets", "dev_prediction_tokens"):
            if role.task != "generation" and not training.is_default(field):
                raise ValueError(f"{name}.{field} does nothing: the task is {role.task}")


TRAINING_RULES: tuple[Callable[[Recipe], None], ...] = (
    losses_are_of_the_task,
    losses_count_for_something,
    a_task_head_is_taught_in_process,
    a_vote_has_several_samples,
    selected_pseudo_targets_are_texts,
    selected_pseudo_targets_are_learned,
    all_are_written_before_some_are_selected,
    gold_targets_are_not_in_the_store,
    the_source_of_outputs_has_a_use,
    passes_are_the_teachers,
    new_samples_have_a_live_teacher,
    students_in_parts_write_no_samples,
    texts_teach_no_distribution,
    only_a_top_k_has_a_tail,
    draws_are_of_losses_that_work_with_them,
    a_fine_tuned_teacher_learns_gold_alone,
    dev_rows_replace_a_holdout,
    a_task_head_writes_no_tokens,
)
