"""What used to end a run after the teacher was paid, and is refused by `check`: by the exact line that a user reads."""

import pytest
from test_rules import CLASSES, DEV, GOLD, GOLD_ONLY, MCKD, ROWS, SMALL, TEACHER_CLASSES

from raykd.errors import RecipeError
from raykd.recipe import rules_early as rules
from raykd.recipe.load import dump_recipe, load_recipe

PASS, ENGINE = "teachers.main.passes.pseudo_targets", "teachers.main.engine"
VLLM = "teachers.main.engine={kind: vllm}"
SCRIPTED = "teachers.main.engine={kind: scripted}"
ENDPOINT = [
    "teachers.main.model={kind: endpoint, name: big}",
    "teachers.main.engine={kind: endpoint, url: 'http://host/v1'}",
]
WORDS = "tokenizer={kind: words}"
T5 = "student.model={kind: config, model_type: t5}"


def options(text: str, sampling: str = PASS) -> str:
    return f"{sampling}={{temperature: 1, options: {{{text}}}}}"


def arguments(text: str) -> str:
    return f"teachers.main.engine={{kind: vllm, arguments: {{{text}}}}}"


def schedule(text: str) -> str:
    return f"student.training={{learning_rate: 0.1, max_steps: 9, {text}}}"


OPTIONS, ARGUMENTS, SHOTS = (
    rules.options_are_the_engines,
    rules.arguments_are_vllms,
    "kind: chat, shots: {count: 3, rows",
)
# rule, overrides of SMALL, the line
BROKEN = [
    (
        OPTIONS,
        [VLLM, options("tempratur: 3")],
        f"{PASS}.options.tempratur: vLLM has no such option; did you mean temperature?",
    ),
    (
        OPTIONS,
        [VLLM, options("min_pp: 0.1")],
        f"{PASS}.options.min_pp: vLLM has no such option; did you mean min_p?",
    ),
    (
        OPTIONS,
        [options("num_beam: 3", "student.sampling")],
        "student.sampling.options.num_beam: transformers has no such option; did you mean num_beams?",
    ),
    (
        OPTIONS,
        [options("bad_words: [x]")],
        f"{PASS}.options.bad_words: transformers has no such option; it is one of the other engine's",
    ),
    (
        OPTIONS,
        [VLLM, options("num_beams: 2")],
        f"{PASS}.options.num_beams: vLLM has no such option; it is one of the other engine's",
    ),
    (
        OPTIONS,
        [options("num_beams: two")],
        f"{PASS}.options.num_beams: expected a whole number of 1 or more, found 'two'",
    ),
    (
        OPTIONS,
        [options("do_sample: true")],
        f"{PASS}.options.do_sample: not here; set temperature beside options",
    ),
    (
        OPTIONS,
        [options("prompt_lookup_num_tokens: 3")],
        f"{PASS}.options.prompt_lookup_num_tokens: not here; the engine works in batches, and this one serves "
        "single prompts",
    ),
    (
        OPTIONS,
        [options("penalty_alpha: 0.6")],
        f"{PASS}.options.penalty_alpha: not here; transformers loads code from the hub for it",
    ),
    (
        OPTIONS,
        [VLLM, options("logprobs: 3")],
        f"{PASS}.options.logprobs: not here; the teacher's payload decides it",
    ),
    (
        OPTIONS,
        [VLLM, options("presence_penalty: 3")],
        f"{PASS}.options.presence_penalty: expected a number from -2 to 2, found 3",
    ),
    (
        OPTIONS,
        [VLLM, options("stop: ['']")],
        f"{PASS}.options.stop: expected texts, found ['']",
    ),
    (
        OPTIONS,
        [VLLM, options("structured_outputs: {regex: a}")],
        f"{PASS}.options.structured_outputs: not here; it is an object, which a recipe cannot hold",
    ),
    (
        OPTIONS,
        [*ENDPOINT, options("stream: true")],
        f"{PASS}.options.stream: expected nothing, the engine sets it",
    ),
    (
        ARGUMENTS,
        [arguments("max_num_seq: 8")],
        f"{ENGINE}.arguments.max_num_seq: vLLM has no such option; did you mean max_num_seqs?",
    ),
    (ARGUMENTS, [arguments("model: m")], f"{ENGINE}.arguments.model: not here; set the section model"),
    (
        ARGUMENTS,
        [arguments("tensor_parallel_size: '2'")],
        f"{ENGINE}.arguments.tensor_parallel_size: expected a whole number of 1 or more, found '2'",
    ),
    (
        ARGUMENTS,
        [arguments("dtype: fp16")],
        f"{ENGINE}.arguments.dtype: expected one of auto, half, float16, bfloat16, float, float32, found 'fp16'",
    ),
    (
        rules.vllm_samples_below_its_highest_temperature,
        [VLLM, f"{PASS}.temperature=3"],
        f"{PASS}.temperature: vLLM samples at 2 at most, found 3",
    ),
    (
        rules.vllm_samples_below_its_highest_temperature,
        [VLLM, "pseudo_targets={format: intent, retries: 1, retry_temperature: 2.5}"],
        "pseudo_targets.retry_temperature: vLLM samples at 2 at most, found 2.5",
    ),
    (
        rules.beams_give_every_sample,
        ["teachers.main.passes.pseudo_targets={n: 3, temperature: 1, options: {num_beams: 2}}"],
        f"{PASS}.n: 2 beams give at most 2 samples, found 3",
    ),
    (
        rules.the_shortest_output_is_not_above_the_longest,
        [VLLM, options("min_tokens: 200")],
        f"{PASS}.options.min_tokens: expected at most 128, max_tokens, found 200",
    ),
    (
        rules.the_shortest_output_is_not_above_the_longest,
        ["student.sampling={max_tokens: 4, options: {min_new_tokens: 5}}"],
        "student.sampling.options.min_new_tokens: expected at most 4, max_tokens, found 5",
    ),
    (
        rules.vllm_schedules_every_sequence,
        [arguments("max_num_seqs: 64, max_num_batched_tokens: 32")],
        f"{ENGINE}.arguments.max_num_batched_tokens: expected 64 or more, max_num_seqs, found 32",
    ),
    (
        rules.an_output_fits_into_the_engine,
        [arguments("max_model_len: 128")],
        f"{PASS}.max_tokens: expected less than 128, the engine's max_model_len, found 128",
    ),
    (
        rules.the_engine_gives_the_top_k,
        [arguments("max_logprobs: 20"), "teachers.main.payload={kind: top_k}"],
        "teachers.main.payload.k: the engine's max_logprobs is 20, found 64",
    ),
    (
        rules.a_scripted_teacher_gives_texts,
        [SCRIPTED, "teachers.main.payload={kind: hidden}"],
        "teachers.main.payload: a scripted engine gives texts, found hidden",
    ),
    (
        rules.a_teachers_head_gives_texts,
        [*CLASSES, *TEACHER_CLASSES, "teachers.main.payload={kind: top_k}"],
        "teachers.main.payload: a model whose task is classification gives texts, found top_k",
    ),
    (
        rules.an_endpoint_has_an_address,
        ["teachers.main={model: {kind: endpoint, name: m}, engine: {kind: endpoint, url: 'http://host:port/v1'}}"],
        "teachers.main.engine.url: expected http://host:port/v1, found 'http://host:port/v1'",
    ),
    (
        rules.model_types_exist,
        [WORDS, "student.model={kind: config, model_type: t5x}"],
        "student.model.model_type: transformers knows no such model, found 't5x'; did you mean t5?",
    ),
    (
        rules.words_have_no_chat_template,
        [WORDS, T5, "student.prompt={kind: chat}"],
        "student.prompt: kind chat needs a chat template, and a tokenizer of kind words has none",
    ),
    (
        rules.shots_have_enough_rows,
        ["teachers.main.prompt={kind: chat, shots: {count: 3, rows: {kind: jsonl, path: x, limit: 2}}}"],
        "teachers.main.prompt.shots.rows.limit: expected 3 or more, count, found 2",
    ),
    (
        rules.there_are_inputs_to_learn,
        ["data.unlabelled.limit=1"],
        "data.unlabelled.limit: expected 2 or more, found 1",
    ),
    (
        rules.there_are_inputs_to_learn,
        [MCKD, "data.unlabelled.limit=3"],
        "data.unlabelled.limit: expected 4 or more, found 3",
    ),
    (
        rules.a_student_that_follows_has_rows_to_begin_with,
        ["method.overlap=true", "teachers.main.shard_rows=1"],
        "teachers.main.shard_rows: with method.overlap the first shard is learnt and evaluated on: expected 2 or more, "
        "found 1",
    ),
    (
        rules.arms_have_learning_rates,
        [DEV, f"arms.gold_only={{rows: {ROWS}, learning_rates: [0.1, -1]}}"],
        "arms.gold_only.learning_rates: expected numbers above 0, found -1",
    ),
    (
        rules.a_polynomial_falls,
        [schedule("schedule: polynomial, schedule_options: {lr_end: 1}")],
        "student.training.schedule_options.lr_end: expected a share of the learning rate, less than 1",
    ),
]

# overrides of SMALL that a section refuses, the line
SECTIONS = [
    (schedule("schedule: cosin"), "student.training: schedule: no such schedule: 'cosin'; did you mean cosine?"),
    (
        schedule("schedule: greedy"),
        "student.training: schedule: no such schedule: 'greedy'; known: linear, cosine, cosine_with_restarts, "
        "polynomial, constant, constant_with_warmup, inverse_sqrt, cosine_with_min_lr, cosine_warmup_with_min_lr, "
        "warmup_stable_decay",
    ),
    (
        schedule("schedule: cosine, schedule_options: {cycles: 1}"),
        "student.training: schedule_options.cycles: cosine has no such option; did you mean num_cycles?",
    ),
    (
        schedule("schedule: cosine, schedule_options: {num_cycles: many}"),
        "student.training: schedule_options.num_cycles: expected a number, found 'many'",
    ),
    (
        schedule("schedule: linear, schedule_options: {power: 1}"),
        "student.training: schedule_options do nothing: the schedule is linear",
    ),
    (
        schedule("schedule: cosine_with_min_lr"),
        "student.training: schedule_options: cosine_with_min_lr needs either min_lr or min_lr_rate",
    ),
    (
        schedule("schedule: warmup_stable_decay"),
        "student.training: schedule_options: warmup_stable_decay needs num_decay_steps",
    ),
    (
        schedule("schedule: warmup_stable_decay, schedule_options: {num_decay_steps: 3, decay_type: steep}"),
        "student.training: schedule_options.decay_type: expected one of linear, cosine, 1-sqrt, found 'steep'",
    ),
    (
        schedule("schedule: inverse_sqrt, schedule_options: {timescale: 0.5}"),
        "student.training: schedule_options.timescale: expected a whole number above 0, found 0.5",
    ),
    (
        schedule("losses: {cross_entropy: {weight: 0}}"),
        "student.training.losses: every weight is 0, so nothing would be learnt",
    ),
    (schedule("weight_decay: .inf"), "student.training.weight_decay: expected a finite number, found inf"),
    ("student.training.learning_rate=.inf", "student.training.learning_rate: expected a finite number, found inf"),
    ("student.training.evaluate_every=.inf", "student.training.evaluate_every: expected a finite number, found inf"),
    (
        "student.training.learning_rate='nan'",
        "student.training.learning_rate: Input should be a finite number, found 'nan'",
    ),
    (options("min_p: .nan"), f"{PASS}.options.min_p: expected a finite number, found nan"),
    (
        "cluster.teacher.resources={GPU: -1}",
        "cluster.teacher: resources.GPU: expected 0, or 0.0001 or more, found -1",
    ),
    (
        "cluster.student.resources={GPU: 1.5}",
        "cluster.student: resources.GPU: expected a share of one GPU, or whole ones, found 1.5",
    ),
    ("cluster.student.resources={CPU: .inf}", "cluster.student.resources.CPU: expected a finite number, found inf"),
    ("cluster.capacity={CPU: -4}", "cluster: capacity.CPU: expected 0, or 0.0001 or more, found -4"),
    ("seed=-1", "seed: Input should be greater than or equal to 0, found -1"),
    (f"name={'x' * 101}", f"name: String should have at most 100 characters, found '{'x' * 48} ... {'x' * 25}'"),
]

RIGHT = [
    [VLLM, options("min_p: 0.1, stop: ['a'], stop_token_ids: [1], repetition_penalty: 1.2, ignore_eos: false")],
    [options("num_beams: 4, length_penalty: -1, early_stopping: never, no_repeat_ngram_size: 2", "student.sampling")],
    [*ENDPOINT, options("anything: 1, min_p: x")],
    [arguments("max_model_len: 129, enforce_eager: true, max_logprobs: -1"), "teachers.main.payload={kind: top_k}"],
    [MCKD, "data.unlabelled.limit=4"],
    [GOLD, DEV, GOLD_ONLY, "teachers.main.fine_tune={learning_rate: 0.1, max_steps: 1}"],
    [schedule("schedule: cosine_with_min_lr, schedule_options: {min_lr_rate: 0.1}")],
    [schedule("schedule: warmup_stable_decay, schedule_options: {num_decay_steps: 3, decay_type: 1-sqrt}")],
    [schedule("losses: {cross_entropy: {weight: 0}, jsd: {}}")],
    ["cluster.teacher.resources={CPU: 1.5, GPU: 0.25, raykd_teacher: 1}"],
]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def refused(path, overrides) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(("rule", "overrides", "line"), BROKEN)
def test_a_broken_rule_is_one_line(small, rule, overrides, line):
    assert refused(small, overrides) == line


@pytest.mark.parametrize(("override", "line"), SECTIONS)
def test_what_a_section_refuses_is_one_line(small, override, line):
    assert refused(small, [override]) == line


def test_every_rule_is_checked_once_and_has_its_line():
    assert len(set(rules.EARLY_RULES)) == len(rules.EARLY_RULES)
    assert set(rules.EARLY_RULES) == {rule for rule, _, _ in BROKEN}
    named = {value for value in vars(rules).values() if getattr(value, "__module__", "") == rules.__name__}
    assert set(rules.EARLY_RULES) == {value for value in named if not value.__name__.startswith("_")}


@pytest.mark.parametrize("overrides", RIGHT)
def test_what_is_right_stays_right_when_every_default_is_written_out(small, overrides):
    loaded = load_recipe(small, overrides)
    small.write_text(dump_recipe(loaded))
    assert load_recipe(small) == loaded
