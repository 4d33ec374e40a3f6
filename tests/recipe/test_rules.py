"""Every rule that spans sections, by the exact line that a user reads."""

import pytest

from raykd.errors import RecipeError
from raykd.recipe import rules, rules_training
from raykd.recipe.load import dump_recipe, load_recipe

SMALL = """
name: small
method: {kind: distill}
data: {unlabelled: {kind: jsonl, path: rows.jsonl}}
teachers: {main: {model: {kind: checkpoint, path: teacher}, engine: {kind: transformers}}}
student:
  model: {kind: checkpoint, path: student}
  training: {learning_rate: 0.001, max_steps: 10}
"""
ROWS = "{kind: jsonl, path: gold.jsonl, columns: {target: target}}"
GOLD, DEV, TEST = f"data.gold={ROWS}", f"data.dev={ROWS}", f"data.test={{main: {ROWS}}}"
FINE_TUNE = "teachers.main.fine_tune={learning_rate: 0.1, max_steps: 1}"
ENDPOINT = [
    "teachers.main.model={kind: endpoint, name: big}",
    "teachers.main.engine={kind: endpoint, url: 'http://host/v1'}",
]
CLASSES = ["student.task=classification", "student.labels=[ham, spam]"]
TEACHER_CLASSES = ["teachers.main.task=classification", "teachers.main.labels=[ham, spam]"]
MCKD, TOP_K = "method={kind: mckd}", "method={kind: mckd, exchange: top_k}"
SAMPLED = "teachers.main.payload={kind: sampled}"
JSD = "student.training.losses={jsd: {}}"
MIXTURE = "student.training.sequences={shares: {gold: 0.5, pseudo_targets: 0.5}, by: row}"
STUDENT = "student.training.sequences={shares: {student: 0.5, pseudo_targets: 0.5}, by: step}"
IN_PROCESS = "student.training.teacher={kind: in_process}"
GOLD_ONLY = f"arms.gold_only={{rows: {ROWS}}}"
LLAMA = "{kind: config, model_type: llama}"

# rule, overrides of SMALL, the line
BROKEN = [
    (
        rules.only_a_classification_has_labels,
        ["student.labels=[a, b]"],
        "student: labels do nothing: the task is generation",
    ),
    (
        rules.only_a_classification_has_labels,
        ["teachers.main.task=classification"],
        "teachers.main: a classification needs labels, the names of its classes in order",
    ),
    (
        rules.only_a_classification_has_labels,
        ["student.task=classification", "student.labels=[a, a]"],
        "student: labels: expected two names or more, all different, found ['a', 'a']",
    ),
    (
        rules.labels_are_the_same,
        [*CLASSES, "teachers.main.task=classification", "teachers.main.labels=[spam, ham]"],
        "teachers.main.labels ['spam', 'ham'] and student.labels ['ham', 'spam'] must be the same",
    ),
    (
        rules.a_task_head_writes_no_text,
        [*TEACHER_CLASSES, "teachers.main.engine={kind: vllm}"],
        "teachers.main: engine: expected kind transformers for a model whose task is classification, found vllm",
    ),
    (
        rules.a_task_head_writes_no_text,
        [*CLASSES, "student.sampling.max_tokens=3"],
        "student: sampling does nothing: a model whose task is classification answers once",
    ),
    (
        rules.a_task_head_writes_no_text,
        [*TEACHER_CLASSES, "teachers.main.passes.pseudo_targets.max_tokens=3"],
        "teachers.main: passes.pseudo_targets does nothing: a model whose task is classification answers once",
    ),
    (
        rules.a_task_head_writes_no_text,
        [*TEACHER_CLASSES, TEST, "metrics=[{kind: bleu}]", "teachers.main.answering={max_tokens: 3}"],
        "teachers.main: answering does nothing: a model whose task is classification answers once",
    ),
    (
        rules_training.losses_are_of_the_task,
        ["student.task=regression"],
        "student: losses of a regression are mse and teacher_mse, found cross_entropy",
    ),
    (
        rules_training.losses_are_of_the_task,
        ["teachers.main.fine_tune={learning_rate: 0.1, max_steps: 1, losses: {mse: {}}}", GOLD],
        "teachers.main: losses of a generation are those on logits, found mse",
    ),
    (
        rules_training.a_task_head_is_taught_in_process,
        ["student.task=regression", "teachers.main.task=regression", "student.training.losses={teacher_mse: {}}"],
        "student.training.teacher: expected kind in_process for a regression, found store",
    ),
    (
        rules.a_teacher_has_the_students_task,
        [*CLASSES, JSD, "student.training.teacher={kind: in_process}"],
        "teachers.main.task: expected classification, the student's, found generation",
    ),
    (
        rules.an_endpoint_model_is_behind_an_endpoint,
        ENDPOINT[:1],
        "teachers.main: model of kind endpoint and engine of kind endpoint go together, "
        "found endpoint and transformers",
    ),
    (
        rules.an_endpoint_model_is_not_fine_tuned,
        [*ENDPOINT, FINE_TUNE, GOLD],
        "teachers.main: fine_tune: a model behind an endpoint cannot be trained here",
    ),
    (
        rules.an_endpoint_gives_texts,
        [*ENDPOINT, "teachers.main.payload={kind: top_k}"],
        "teachers.main: payload: an endpoint gives texts, found top_k",
    ),
    (
        rules.no_loss_reads_an_endpoint,
        [*ENDPOINT, JSD],
        "student.training.losses: a teacher behind an endpoint gives texts alone",
    ),
    (
        rules.a_student_is_behind_no_endpoint,
        ["student.engine={kind: endpoint, url: 'http://host/v1'}"],
        "student: engine: a student answers here, found kind endpoint",
    ),
    (
        rules.samples_are_seeded_by_vllm,
        ["teachers.main.passes.pseudo_targets={seeded: true, temperature: 1}"],
        "teachers.main.passes.pseudo_targets.seeded: only vllm seeds each sample, the engine is transformers",
    ),
    (
        rules.samples_are_seeded_by_vllm,
        [TEST, "metrics=[{kind: bleu}]", "teachers.main.answering={seeded: true, temperature: 1}"],
        "teachers.main.answering.seeded: only vllm seeds each sample, the engine is transformers",
    ),
    (
        rules.samples_are_seeded_by_vllm,
        ["student.sampling={seeded: true, temperature: 1}"],
        "student.sampling.seeded: only vllm seeds each sample, the engine is transformers",
    ),
    (
        rules.a_student_writes_one_sample,
        ["student.sampling={n: 2, temperature: 1}"],
        "student.sampling.n does nothing above 1: a student answers once",
    ),
    (
        rules.random_weights_need_the_tokenizer,
        [f"student.model={LLAMA}"],
        "a model of kind config needs the section tokenizer",
    ),
    (
        rules.random_weights_need_the_tokenizer,
        ["tokenizer={kind: words}"],
        "tokenizer does nothing: both models are pretrained and bring their own",
    ),
    (
        rules.an_untrained_teacher_is_fine_tuned,
        [f"teachers.main.model={LLAMA}", "tokenizer={kind: words}"],
        "a teacher of kind config has random weights: it needs teachers.main.fine_tune",
    ),
    (
        rules.an_untrained_teacher_is_fine_tuned,
        ["teachers.main.model={kind: pruned, path: big, layers: [0]}"],
        "a teacher of kind pruned lacks layers it was trained with: it needs teachers.main.fine_tune",
    ),
    (
        rules.a_fine_tuned_teacher_has_no_teacher,
        [GOLD, "teachers.main.fine_tune={learning_rate: 0.1, max_steps: 1, losses: {jsd: {}}}"],
        "teachers.main.fine_tune.losses: a teacher that is fine-tuned has no teacher",
    ),
    (rules.gold_is_there_where_it_is_needed, [FINE_TUNE], "teachers.main.fine_tune needs data.gold"),
    (
        rules.gold_is_there_where_it_is_needed,
        ["student.training.sequences={union: [gold]}"],
        "student.training.sequences: the source gold needs data.gold",
    ),
    (rules.gold_is_there_where_it_is_needed, ["method={kind: mckd, gold: true}"], "method.gold needs data.gold"),
    (rules.gold_has_a_use, [GOLD], "data.gold does nothing without teachers.main.fine_tune"),
    (rules.dev_has_a_use, [DEV], "data.dev does nothing without teachers.main.fine_tune or arms.gold_only"),
    (rules.test_rows_and_metrics_go_together, [TEST], "data.test does nothing without metrics"),
    (
        rules.test_rows_and_metrics_go_together,
        ["teachers.main.answering={temperature: 1}"],
        "teachers.main.answering does nothing without data.test",
    ),
    (rules.test_rows_and_metrics_go_together, ["metrics=[{kind: bleu}]"], "metrics do nothing without data.test"),
    (
        rules_training.a_vote_has_several_samples,
        ["pseudo_targets.vote=true"],
        "pseudo_targets.vote: a vote needs teachers.main.passes.pseudo_targets.n of 2 or more",
    ),
    (
        rules_training.selected_pseudo_targets_are_texts,
        [JSD, "pseudo_targets={format: labels, invalid: drop}"],
        "pseudo_targets: what is chosen are texts: student.training.teacher in_process or remote",
    ),
    (
        rules_training.selected_pseudo_targets_are_learned,
        [GOLD, MIXTURE, "pseudo_targets={format: labels, invalid: drop}"],
        "pseudo_targets: chosen ones are learnt alone, found sequences of gold and pseudo_targets",
    ),
    (
        rules_training.all_are_written_before_some_are_selected,
        ["method.overlap=true", "pseudo_targets={format: labels, retries: 1}"],
        "method.overlap: pseudo-targets are chosen when all are there: no pseudo_targets.vote, retries, invalid",
    ),
    (
        rules_training.the_source_of_outputs_has_a_use,
        ["student.training.teacher={kind: in_process}"],
        "student.training.teacher does nothing: cross_entropy needs no teacher",
    ),
    (
        rules_training.the_source_of_outputs_has_a_use,
        ["student.training.teacher.kind=store", "student.training.teacher.tail=refuse"],
        "student.training.teacher does nothing: cross_entropy needs no teacher",
    ),
    (
        rules_training.the_source_of_outputs_has_a_use,
        ["student.task=regression", "student.training.losses={mse: {}}", "student.training.teacher={kind: remote}"],
        "student.training.teacher does nothing: mse needs no teacher",
    ),
    (
        rules_training.the_source_of_outputs_has_a_use,
        [GOLD, FINE_TUNE, "teachers.main.fine_tune.teacher={kind: in_process}"],
        "teachers.main.fine_tune.teacher does nothing: cross_entropy needs no teacher",
    ),
    (
        rules_training.only_a_top_k_has_a_tail,
        [JSD, "student.training.teacher={kind: store, tail: refuse}", "teachers.main.payload={kind: hidden}"],
        "student.training.teacher.tail does nothing: teachers.main.payload is hidden",
    ),
    (
        rules_training.draws_are_of_losses_that_work_with_them,
        ["student.training.losses={soft_cross_entropy: {}, atkd: {}}", SAMPLED],
        "student.training.losses.atkd: teachers.main.payload is sampled, and drawn tokens serve soft_cross_entropy at "
        "temperature 1 alone",
    ),
    (
        rules_training.draws_are_of_losses_that_work_with_them,
        ["student.training.losses={soft_cross_entropy: {temperature: 2}}", SAMPLED],
        "student.training.losses.soft_cross_entropy: teachers.main.payload is sampled, and drawn tokens serve "
        "soft_cross_entropy at temperature 1 alone",
    ),
    (
        rules_training.gold_targets_are_not_in_the_store,
        [GOLD, MIXTURE, JSD],
        "student.training.teacher: gold targets are not in the store: in_process or remote",
    ),
    (
        rules_training.a_fine_tuned_teacher_learns_gold_alone,
        [GOLD, FINE_TUNE, "teachers.main.fine_tune.sequences={union: [gold]}"],
        "teachers.main.fine_tune.sequences does nothing: a teacher learns data.gold",
    ),
    (
        rules_training.dev_rows_replace_a_holdout,
        [GOLD, DEV, FINE_TUNE, "teachers.main.fine_tune.holdout=0.2"],
        "teachers.main.fine_tune.holdout does nothing: data.dev chooses the checkpoint",
    ),
    (
        rules_training.a_task_head_writes_no_tokens,
        [*CLASSES, "student.training.max_target_tokens=3"],
        "student.training.max_target_tokens does nothing: the task is classification",
    ),
    (
        rules_training.a_task_head_writes_no_tokens,
        ["student.task=extractive_qa", "student.training.long_targets=cut"],
        "student.training.long_targets does nothing: the task is extractive_qa",
    ),
    (
        rules.mckd_learns_pseudo_targets,
        [MCKD, GOLD, MIXTURE],
        "student.training.sequences: mckd learns pseudo_targets, found gold and pseudo_targets",
    ),
    (
        rules.texts_of_mckd_are_not_in_the_store,
        [MCKD, JSD],
        "student.training.teacher: mckd's rows are texts: kind in_process or remote, found store, which goes with "
        "method.exchange: top_k",
    ),
    (
        rules.a_regression_has_no_confidence,
        [
            "method={kind: mckd, weighting: confidence}",
            "student.task=regression",
            "student.training.losses={mse: {}}",
        ],
        "method.weighting: confidence is a probability, and a regression has none",
    ),
    (
        rules.exchanged_probabilities_are_learned,
        [TOP_K],
        "method.exchange: top_k needs student.training.losses on probabilities, from teacher: {kind: store}",
    ),
    (
        rules.an_arm_differs_from_the_method,
        ["arms.distilled=true"],
        "arms.distilled does nothing: the method is distill already",
    ),
    (rules.the_control_arm_has_dev_rows, [GOLD_ONLY], "arms.gold_only needs data.dev to choose its checkpoint"),
    (
        rules.settings_are_of_random_weights,
        [DEV, GOLD_ONLY, "arms.gold_only.settings={dropout: 0.1}"],
        "arms.gold_only.settings do nothing: student.model is pretrained",
    ),
    (
        rules.a_replica_has_the_gpus_of_its_engine,
        [
            "teachers.main.engine={kind: vllm, arguments: {tensor_parallel_size: 2}}",
            "cluster.teacher.resources={GPU: 1}",
        ],
        "cluster.teacher.resources.GPU: expected 2, the engine's tensor_parallel_size, found 1",
    ),
    (
        rules.trackers_differ,
        ["trackers=[{kind: wandb, project: a}, {kind: wandb, project: b}]"],
        "trackers: wandb is given twice",
    ),
    (
        rules_training.losses_count_for_something,
        ["student.training.losses={cross_entropy: {weight: 0}}"],
        "student.training.losses: every weight is 0, so nothing would be learnt",
    ),
    (
        rules_training.losses_are_of_the_task,
        ["student.training.losses={cross_entropy: {}, hidden_mse: {}}", IN_PROCESS],
        "student: losses.hidden_mse compares hidden states of encoders, found a generation",
    ),
    (
        rules_training.losses_are_of_the_task,
        [*CLASSES, *TEACHER_CLASSES, "student.training.losses={hidden_mse: {}}", IN_PROCESS],
        "student: losses on hidden states alone train no head: give one on targets or logits too",
    ),
    (
        rules_training.the_source_of_outputs_has_a_use,
        [JSD, "student.training.teacher={stored: {kind: store}, sampled: {kind: in_process}}"],
        "student.training.teacher.sampled does nothing: sequences has no source that writes in each step",
    ),
    (
        rules_training.the_source_of_outputs_has_a_use,
        [JSD, STUDENT, "student.training.teacher={stored: {kind: in_process}, sampled: {kind: in_process}}"],
        "student.training.teacher: stored and sampled are the same: give one section for both",
    ),
    (
        rules_training.the_source_of_outputs_has_a_use,
        [JSD, STUDENT, "student.training.teacher={stored: {kind: remote}, sampled: {kind: in_process}}"],
        "student.training.teacher.stored: expected kind store, found remote",
    ),
    (
        rules_training.new_samples_have_a_live_teacher,
        [JSD, STUDENT],
        "student.training.teacher: new samples are not in the store: expected kind in_process or remote, or "
        "{stored: {kind: store}, sampled: {kind: in_process}}",
    ),
    (
        rules_training.new_samples_have_a_live_teacher,
        [STUDENT],
        "student.training.sequences: cross_entropy on new samples would teach nothing: give a loss with a teacher",
    ),
    (
        rules_training.new_samples_have_a_live_teacher,
        [*CLASSES, *TEACHER_CLASSES, JSD, IN_PROCESS, STUDENT],
        "student.training.sequences: a model whose task is classification writes no student samples",
    ),
    (
        rules_training.students_in_parts_write_no_samples,
        [JSD, STUDENT, IN_PROCESS, "cluster.student={parallel: fsdp}"],
        "student.training.sequences: new samples are not written by a student in parts (fsdp) yet",
    ),
    (
        rules_training.passes_are_the_teachers,
        ["student.training.sequences={union: [sampling]}"],
        "student.training.sequences: no source 'sampling'; expected gold, student, pseudo_targets or module:NAME",
    ),
    (
        rules_training.texts_teach_no_distribution,
        [JSD, "teachers.main.payload={kind: text}"],
        "student.training.losses.jsd reads the teacher's probabilities from the store: teachers.main.payload: "
        "expected top_k, sampled or hidden, found text",
    ),
    (
        rules_training.gold_targets_are_not_in_the_store,
        [GOLD, JSD, "student.training.sequences={union: [gold]}"],
        "student.training.teacher: gold targets are not in the store: in_process or remote",
    ),
]

# what comes close to a rule, and is right
RIGHT = [
    [DEV, GOLD, FINE_TUNE],
    [DEV, GOLD_ONLY],
    [GOLD, FINE_TUNE, "teachers.main.fine_tune.holdout=0.2"],
    [GOLD, MIXTURE],
    [TEST, "metrics=[{kind: bleu}]"],
    [TEST, "metrics=[{kind: bleu}]", "teachers.main.answering={temperature: 0.5}"],
    [*CLASSES, *TEACHER_CLASSES],
    [*CLASSES, *TEACHER_CLASSES, JSD, "student.training.teacher={kind: in_process}"],
    [
        "student.task=regression",
        "teachers.main.task=regression",
        "student.training.losses={teacher_mse: {}}",
        "student.training.teacher={kind: in_process}",
    ],
    [JSD, "student.training.teacher={kind: remote, tail: refuse}", "teachers.main.payload={kind: text}"],
    [JSD, "student.training.teacher={kind: store, tail: refuse}"],
    ["student.training.losses={soft_cross_entropy: {}, cross_entropy: {temperature: 2}}", SAMPLED],
    [JSD, "student.training.teacher={kind: in_process}", SAMPLED],
    [JSD, TOP_K, "student.training.teacher={kind: store, tail: refuse}", SAMPLED],
    [
        "teachers.main.engine={kind: vllm}",
        "teachers.main.passes.pseudo_targets={n: 2, temperature: 1, seeded: true}",
        "pseudo_targets.vote=true",
    ],
]


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize(("rule", "overrides", "line"), BROKEN)
def test_a_broken_rule_is_one_line(small, rule, overrides, line):
    with pytest.raises(RecipeError) as error:
        load_recipe(small, overrides)
    assert str(error.value) == f"{small}: {line}" and "\n" not in line


def test_every_rule_is_checked_once_and_has_its_line():
    every = [*rules.RULES, *rules_training.TRAINING_RULES]
    assert len(set(every)) == len(every) and set(every) == {rule for rule, _, _ in BROKEN}
    for module in (rules, rules_training):
        named = {value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__}
        assert named - {value for value in named if value.__name__.startswith("_")} <= set(every)


@pytest.mark.parametrize("overrides", [[], *RIGHT])
def test_what_is_right_stays_right_when_every_default_is_written_out(small, overrides):
    loaded = load_recipe(small, overrides)
    small.write_text(dump_recipe(loaded))
    assert load_recipe(small) == loaded
    for rule in (*rules.RULES, *rules_training.TRAINING_RULES):
        rule(loaded)
