"""The published losses: what the original code computed, and figures that its authors' functions gave."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from registry import REGISTRY

from raykd.losses import divergences

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
NOT_TRAINED_ON = {"minillm_policy_gradient", "trl_minillm_advantage"}  # rewards of reinforcement learning


def checker():
    spec = importlib.util.spec_from_file_location("golden_check", GOLDEN / "check.py")
    assert spec and spec.loader
    sys.modules["golden_check"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden vectors lie beside the checkout, and here there are none")
def test_every_golden_case_holds():
    check = checker()
    index, _ = check.load_set(GOLDEN)
    assert set(index["losses"]) == set(REGISTRY) | NOT_TRAINED_ON
    checked = [c for c in index["cases"] if c["status"] == "ok" and c["loss"] not in NOT_TRAINED_ON]
    precisions = sum(bool(case["tolerance"][name]) for case in checked for name in ("float64", "float32"))
    passed, failed, _ = check.run(GOLDEN, REGISTRY)
    assert (passed, failed) == (precisions, 0) and passed > 400


def wave(shape, a, b):
    return torch.sin(a * (torch.arange(math.prod(shape), dtype=torch.float64) + 1) + b).view(shape)


MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, 1.3824905885309198), (2.0, 1.7726845812850827), (-0.8, 1.142371515757425)],
)
def test_kd4gen_logits(temperature, expected):
    logits = {"student_logits": 2 * wave((2, 3, 5), 0.7, 0.1), "teacher_logits": 2 * wave((2, 3, 5), 1.3, 0.4)}
    found = REGISTRY["kd4gen_logits_kd"]({**logits, "labels_mask": MASK}, {"temperature": temperature})
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kl", "causal", "hidden", "attention"),
    [
        (False, False, 0.9237964318340603, 0.3562183534956386),
        (True, False, 0.10656527668244142, 0.03958879056441819),
        (False, True, 0.8313386765098272, 0.35941313783659906),
        (True, True, 0.025962731428162193, 0.020649590901288564),
    ],
)
def test_kd4gen_relations(kl, causal, hidden, attention):
    params = {"kl_loss": kl, "causal_mask": causal}
    states = {"student_hidden": wave((2, 3, 4), 0.5, 0.2), "teacher_hidden": wave((2, 3, 6), 0.9, 0.3)}
    found = REGISTRY["kd4gen_hidden_relations"]({**states, "attention_mask": MASK}, params)
    assert found.item() == pytest.approx(hidden, rel=1e-12)
    states = {"student_states": wave((2, 2, 3, 6), 0.5, 0.2), "teacher_states": wave((2, 4, 3, 4), 0.9, 0.3)}
    found = REGISTRY["kd4gen_attention_relations"]({**states, "attention_mask": MASK}, params)
    assert found.item() == pytest.approx(attention, rel=1e-12)


def test_atkd_in_reverse_exchanges_the_logits_and_not_their_temperatures():
    """The student's logits are divided by the teacher's temperature, and the teacher's by the student's."""
    student, teacher = 2 * wave((1, 6, 5), 0.7, 0.1), 2 * wave((1, 6, 5), 1.3, 0.4)
    inputs = {"student_logits": student, "teacher_logits": teacher, "input_ids": torch.tensor([[1, 4, 2, 0, 3, 2]])}
    inputs["padding_mask"] = torch.zeros(1, 6, dtype=torch.bool)
    params = {"setting": "reverse", "alpha": 0.3, "shift": "outside", "student_temperature": 2.0}
    found = REGISTRY["atkd_atkd"](inputs, {**params, "teacher_temperature": 0.5})
    as_written = {"student_temperature": 2.0, "teacher_temperature": 0.5}
    first, second = teacher[0] / as_written["student_temperature"], student[0] / as_written["teacher_temperature"]
    at_N = inputs["input_ids"][0]
    target, diversity, _ = divergences.target_parts(first.log_softmax(1), second.log_softmax(1), at_N)
    uncertainty = 1 - first.softmax(1).gather(1, at_N[:, None]).squeeze(1)  # the teacher's, as it was divided
    easy = uncertainty < uncertainty.median()
    expected = 0.3 * diversity[easy].mean() + 0.7 * (target + diversity)[~easy].mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    same = REGISTRY["atkd_atkd"](inputs, {**params, "student_temperature": 0.5, "teacher_temperature": 2.0})
    assert same.item() != pytest.approx(found.item(), rel=1e-3)
