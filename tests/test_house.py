"""The house's limits on size (docs/architecture.md), as benchmarks/counts.py counts them."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def counts():
    spec = importlib.util.spec_from_file_location("counts", ROOT / "benchmarks" / "counts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_file_is_above_400_lines(counts):
    assert [(size, name) for size, name in counts.largest_files(ROOT) if size > 400] == []


def test_no_function_is_above_60_lines_or_takes_more_than_six_parameters(counts):
    functions = counts.largest_functions(ROOT)
    assert [(size, name) for size, _, name in functions if size > 60] == []
    fields = (" cmudict", " penn")  # readers of rows: their parameters are a recipe's `arguments`
    many = [(count, name) for _, count, name in functions if count > 6 and not name.endswith(fields)]
    assert many == []


def test_what_is_too_large_is_seen(counts, tmp_path):
    folder = tmp_path / "raykd"
    folder.mkdir()
    (folder / "large.py").write_text("x = 1\n" * 401)
    body = "    x = 1\n" * 60
    (folder / "long.py").write_text(f"def long(a, b, c, d, e, f, g):\n{body}")
    assert counts.largest_files(tmp_path)[0] == (401, "raykd/large.py")
    assert counts.largest_functions(tmp_path)[0] == (61, 7, "raykd/long.py:1 long")


def test_one_training_step_is_found_and_counted(counts):
    figures = counts.measure(ROOT)
    assert 100 < figures["one training step, lines"] <= 900 and figures["one training step, files"] >= 3
