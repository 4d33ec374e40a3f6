"""The names that recipes are checked by are those of the installed libraries."""

import ast
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

from raykd.recipe import engine_options, model_types, schedules


def vllm_fields(file: str, name: str) -> set[str]:
    """The public fields of a class of vLLM, read from its source: importing vLLM takes long."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text())
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    fields = {ast.unparse(node.target) for node in found.body if isinstance(node, ast.AnnAssign)}
    return {field for field in fields if not field.startswith("_")}


def test_vllms_names_are_the_installed_ones():
    assert engine_options.VLLM_OPTIONS == vllm_fields("sampling_params.py", "SamplingParams")
    assert engine_options.VLLM_ARGUMENTS == vllm_fields("engine/arg_utils.py", "EngineArgs")


def test_transformers_names_are_the_installed_ones():
    from transformers import GenerationConfig

    names = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert engine_options.TRANSFORMERS_OPTIONS == names


@pytest.mark.parametrize("rules", [engine_options.VLLM, engine_options.TRANSFORMERS, engine_options.ARGUMENTS])
def test_reserved_names_and_checked_ones_are_names(rules):
    assert set(rules.reserved) | set(rules.values) <= rules.known
    assert not set(rules.reserved) & set(rules.values)


def test_schedules_and_their_options_are_the_installed_ones():
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    ours = {kind.value: function for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    assert set(ours) - set(schedules.SCHEDULES) == {"reduce_lr_on_plateau", "greedy"}
    passed_by_transformers = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for name, options in schedules.SCHEDULES.items():
        assert set(inspect.signature(ours[name]).parameters) - passed_by_transformers == set(options), name


NEEDED = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
}


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_schedule_that_check_lets_pass_can_be_built(name):
    from raykd.recipe.training import Training
    from raykd.training.setup import build_schedule

    settings = Training(learning_rate=0.1, max_steps=9, schedule=name, schedule_options=NEEDED.get(name, {}))
    factor = build_schedule(settings, 9)
    assert 0 <= factor(0.5) <= 1


def test_options_that_are_refused_are_those_that_generate_cannot_serve(tiny_models):
    """Values that are right by their type pass through `generate` for a batch of two prompts."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    values = {"token_healing": True, "prompt_lookup_num_tokens": 3, "penalty_alpha": 0.6, "dola_layers": "high"}
    ids = torch.tensor([[3, 4, 5], [5, 4, 3]])
    for name, value in values.items():
        assert name in engine_options.RESERVED
        options = {"max_new_tokens": 2, "do_sample": False, name: value}
        with pytest.raises(ValueError, match=".+"):
            model.generate(input_ids=ids, generation_config=GenerationConfig(**options))


def test_model_types_are_the_installed_ones():
    from transformers import CONFIG_MAPPING

    assert model_types.model_types() == set(CONFIG_MAPPING.keys())
