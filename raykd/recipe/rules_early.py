"""Rules about values that would end a run late: after the teacher was fine-tuned, or had labelled.

As in `rules`, each takes a recipe whose sections are right by themselves and raises ValueError with one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raykd.recipe.engine_options import require_arguments, require_options
from raykd.recipe.generation import EndpointEngine, TopKPayload, VllmEngine
from raykd.recipe.methods import Distill, Mckd
from raykd.recipe.model_types import model_types
from raykd.recipe.models import FromConfig, WordsTokenizer
from raykd.recipe.places import decodings, roles, teacher_field, trainings
from raykd.recipe.prompts import Chat, Shots

if TYPE_CHECKING:
    from raykd.recipe.recipe import Recipe

HOTTEST = 2  # vLLM refuses a higher temperature
SHORTEST = {"vllm": "min_tokens", "transformers": "min_new_tokens"}  # the option for an output's least length


def _shots(recipe: Recipe) -> Iterator[tuple[str, Shots]]:
    """Where the examples of a prompt stand in the recipe, and their section."""
    for name, role in roles(recipe):
        if not isinstance(role.prompt, str) and role.prompt.shots:
            yield f"{name}.prompt.shots", role.prompt.shots


# -------------------------------------------------------------------------------------------------------------- engines


def options_are_the_engines(recipe: Recipe) -> None:
    for name, role, sampling in decodings(recipe):
        try:
            require_options(role.engine.kind, sampling.options)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None


def arguments_are_vllms(recipe: Recipe) -> None:
    for name, role in roles(recipe):
        if isinstance(role.engine, VllmEngine):
            try:
                require_arguments(role.engine.arguments)
            except ValueError as error:
                raise ValueError(f"{name}.engine.{error}") from None


def vllm_samples_below_its_highest_temperature(recipe: Recipe) -> None:
    for name, role, sampling in decodings(recipe):
        if role.engine.kind == "vllm" and sampling.temperature > HOTTEST:
            raise ValueError(f"{name}.temperature: vLLM samples at {HOTTEST} at most, found {sampling.temperature:g}")
    rules = recipe.pseudo_targets
    if recipe.teacher.engine.kind == "vllm" and rules.retries and rules.retry_temperature > HOTTEST:
        raise ValueError(
            f"pseudo_targets.retry_temperature: vLLM samples at {HOTTEST} at most, found {rules.retry_temperature:g}"
        )


def beams_give_every_sample(recipe: Recipe) -> None:
    for name, role, sampling in decodings(recipe):
        beams = sampling.options.get("num_beams", 1) if role.engine.kind == "transformers" else 1
        if 1 < beams < sampling.n:
            raise ValueError(f"{name}.n: {beams} beams give at most {beams} samples, found {sampling.n}")


def the_shortest_output_is_not_above_the_longest(recipe: Recipe) -> None:
    for name, role, sampling in decodings(recipe):
        option = SHORTEST.get(role.engine.kind, "")
        shortest = sampling.options.get(option, 0)
        if shortest > sampling.max_tokens:
            raise ValueError(
                f"{name}.options.{option}: expected at most {sampling.max_tokens}, max_tokens, found {shortest}"
            )


def vllm_schedules_every_sequence(recipe: Recipe) -> None:
    for name, role in roles(recipe):
        arguments = role.engine.arguments if isinstance(role.engine, VllmEngine) else {}
        tokens, sequences = arguments.get("max_num_batched_tokens"), arguments.get("max_num_seqs", 1)
        if tokens is not None and tokens < sequences:
            raise ValueError(
                f"{name}.engine.arguments.max_num_batched_tokens: expected {sequences} or more, max_num_seqs, "
                f"found {tokens}"
            )


def an_output_fits_into_the_engine(recipe: Recipe) -> None:
    for name, role, sampling in decodings(recipe):
        longest = role.engine.arguments.get("max_model_len") if isinstance(role.engine, VllmEngine) else None
        if longest is not None and sampling.max_tokens >= longest:
            raise ValueError(
                f"{name}.max_tokens: expected less than {longest}, the engine's max_model_len, "
                f"found {sampling.max_tokens}"
            )


def the_engine_gives_the_top_k(recipe: Recipe) -> None:
    engine, payload = recipe.teacher.engine, recipe.teacher.payload
    if isinstance(engine, VllmEngine) and isinstance(payload, TopKPayload):
        most = engine.arguments.get("max_logprobs", payload.k)
        if -1 < most < payload.k:
            raise ValueError(
                f"{teacher_field(recipe)}.payload.k: the engine's max_logprobs is {most}, found {payload.k}"
            )


def a_scripted_teacher_gives_texts(recipe: Recipe) -> None:
    if recipe.teacher.engine.kind == "scripted" and recipe.teacher.payload.kind not in ("auto", "text"):
        raise ValueError(
            f"{teacher_field(recipe)}.payload: a scripted engine gives texts, found {recipe.teacher.payload.kind}"
        )


def a_teachers_head_gives_texts(recipe: Recipe) -> None:
    if recipe.teacher.task != "generation" and recipe.teacher.payload.kind not in ("auto", "text"):
        raise ValueError(
            f"{teacher_field(recipe)}.payload: a model whose task is {recipe.teacher.task} gives texts, "
            f"found {recipe.teacher.payload.kind}"
        )


def an_endpoint_has_an_address(recipe: Recipe) -> None:
    engine = recipe.teacher.engine
    if not isinstance(engine, EndpointEngine):
        return
    try:
        parts = urlsplit(engine.url)
        right = bool(parts.hostname) and parts.port != 0 and not any(c.isspace() for c in engine.url)
    except ValueError:  # a port that is no number; brackets of an address that are not closed
        right = False
    if not right:
        raise ValueError(f"{teacher_field(recipe)}.engine.url: expected http://host:port/v1, found {engine.url!r:.200}")


def model_types_exist(recipe: Recipe) -> None:
    for name, role in roles(recipe):
        known = model_types() if isinstance(role.model, FromConfig) else frozenset()
        if isinstance(role.model, FromConfig) and known and role.model.model_type not in known:
            near = difflib.get_close_matches(role.model.model_type, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{name}.model.model_type: transformers knows no such model, found {role.model.model_type!r:.60}{hint}"
            )


# ------------------------------------------------------------------------------------------------------- rows, prompts


def words_have_no_chat_template(recipe: Recipe) -> None:
    if not isinstance(recipe.tokenizer, WordsTokenizer):
        return
    for name, role in roles(recipe):
        if role.model.kind == "config" and isinstance(role.prompt, Chat):
            raise ValueError(f"{name}.prompt: kind chat needs a chat template, and a tokenizer of kind words has none")


def shots_have_enough_rows(recipe: Recipe) -> None:
    for name, shots in _shots(recipe):
        if shots.rows.limit is not None and shots.rows.limit < shots.count:
            raise ValueError(f"{name}.rows.limit: expected {shots.count} or more, count, found {shots.rows.limit}")


def there_are_inputs_to_learn(recipe: Recipe) -> None:
    limit, method = recipe.data.unlabelled.limit, recipe.method
    least = 2 * method.partitions if isinstance(method, Mckd) else 2  # one to learn and one to evaluate on
    if limit is not None and limit < least:
        raise ValueError(f"data.unlabelled.limit: expected {least} or more, found {limit}")


def a_student_that_follows_has_rows_to_begin_with(recipe: Recipe) -> None:
    if isinstance(recipe.method, Distill) and recipe.method.overlap and recipe.teacher.shard_rows < 2:
        raise ValueError(
            f"{teacher_field(recipe)}.shard_rows: with method.overlap the first shard is learnt and evaluated on: "
            f"expected 2 or more, found {recipe.teacher.shard_rows}"
        )


def arms_have_learning_rates(recipe: Recipe) -> None:
    arm = recipe.arms.gold_only
    for rate in arm.learning_rates if arm else ():
        if rate <= 0:
            raise ValueError(f"arms.gold_only.learning_rates: expected numbers above 0, found {rate:g}")


def a_polynomial_falls(recipe: Recipe) -> None:
    for name, _, training in trainings(recipe):
        if training.schedule == "polynomial" and training.schedule_options.get("lr_end", 0) >= 1:
            raise ValueError(f"{name}.schedule_options.lr_end: expected a share of the learning rate, less than 1")


EARLY_RULES: tuple[Callable[[Recipe], None], ...] = (
    options_are_the_engines,
    arguments_are_vllms,
    vllm_samples_below_its_highest_temperature,
    beams_give_every_sample,
    the_shortest_output_is_not_above_the_longest,
    vllm_schedules_every_sequence,
    an_output_fits_into_the_engine,
    the_engine_gives_the_top_k,
    a_scripted_teacher_gives_texts,
    a_teachers_head_gives_texts,
    an_endpoint_has_an_address,
    model_types_exist,
    words_have_no_chat_template,
    shots_have_enough_rows,
    there_are_inputs_to_learn,
    a_student_that_follows_has_rows_to_begin_with,
    arms_have_learning_rates,
    a_polynomial_falls,
)
