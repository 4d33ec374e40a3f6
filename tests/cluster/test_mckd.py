"""Multistage collaborative distillation through the command line: who labels what, and what is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import dying
import pytest
from conftest import LLAMA, raykd
from test_end_to_end import TRAINING, manifests, recipe

from raykd.data import pseudo_targets

FEW = {**TRAINING, "max_steps": 30, "evaluate_every": 10}


def ran(folder: Path, tiny_models, method: dict, **changes) -> Path:
    """The folder of a run whose teacher is a script."""
    teacher = {"model": {"kind": "checkpoint", "path": str(tiny_models["llama"])}, "prompt": "{input} =>"}
    teacher |= {"engine": {"kind": "scripted", "function": "answers:careless"}}
    teacher |= {"passes": {"pseudo_targets": {"max_tokens": 10}}}
    changes = {"arms": {}, "student__training": FEW, "teachers__main": teacher, **changes}
    changes = {
        "data__gold": None,
        "metrics": [{"kind": "exact_match"}],
        "pseudo_targets": {"format": "answers:CAPITALS"},
        **changes,
    }
    done = raykd("run", str(recipe(folder, method={"kind": "mckd", **method}, **changes)))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "small"


def taught(student: Path) -> list[dict]:
    return [json.loads(line) for line in (student / "rows.jsonl").read_text().splitlines()]


def nobody_labels_what_it_was_taught(run: Path, rounds: int, partitions: int, each: int) -> None:
    """Of the lineages: every input once in each round, by `each` students that never saw it."""
    for number in range(1, rounds + 1):
        labels = pseudo_targets.load_pseudo_targets(run / f"mckd/round-{number}/labels/pseudo_targets.parquet")
        assert len({e.input for e in labels}) == len(labels) == 400
        seen = {f"mckd/round-{number}/student-{i}": set() for i in range(partitions)}
        for name, inputs in seen.items():
            inputs |= {row["input"] for row in taught(run / name)}
        for label in labels:
            assert label.lineage and label.lineage.round == number
            writers = label.lineage.by.split("+")
            assert 1 <= len(writers) <= each and not any(label.input in seen[writer] for writer in writers)
    final = {row["by"] for row in taught(run / "mckd/final") if "by" in row}
    assert final and all(f"mckd/round-{rounds}/" in by for by in final)


@pytest.mark.timeout(800)
def test_votes_retries_rules_and_weights(tmp_path, tiny_models):
    """Three samples of the teacher are put to the vote, invalid ones asked for again; two students vote as well."""
    gold = {"kind": "jsonl", "path": str(tmp_path / "gold.jsonl"), "columns": {"target": "target"}, "limit": 20}
    run = ran(
        tmp_path,
        tiny_models,
        {
            **{"partitions": 3, "shares": [1, 1, 2], "relabel": "vote", "gold": True},
            **{"consistency_filter": {"metric": "chrf", "at_least": -1}, "weighting": "agreement"},
        },
        teachers__main__passes__pseudo_targets={"max_tokens": 10, "n": 3, "temperature": 0.7},
        pseudo_targets={"format": "answers:CAPITALS", "vote": True, "retries": 1, "invalid": "repair"},
        data__gold=gold,
    )
    chosen = json.loads((run / "teacher/chosen/manifest.json").read_text())
    assert chosen["results"]["sizes"] == [100, 100, 200]
    counts, teacher = chosen["stats"], pseudo_targets.load_pseudo_targets(run / "teacher/chosen/pseudo_targets.parquet")
    assert 100 < counts["retried"] < 200 and counts["invalid"] == 0 and counts["dropped"] == 0
    assert {round(e.lineage.agreement or 0, 2) for e in teacher if e.lineage} == {0.67, 1.0}
    right = sum(e.target == e.input.upper() for e in teacher)
    assert 300 < right < 400  # whose every sample is wrong stays wrong
    nobody_labels_what_it_was_taught(run, rounds=1, partitions=3, each=2)
    rows = taught(run / "mckd/final")
    assert sum("by" not in row for row in rows) == 20  # the gold ones
    weights = {row.get("weight", 1.0) for row in rows if "by" in row}
    assert all(0 <= weight <= 1 for weight in weights) and len(weights) > 5
    assert all(row.get("weight", 1.0) == pytest.approx(row["agreement"]) for row in rows if "by" in row)
    memory = json.loads((run / "mckd/round-1/memorisation/manifest.json").read_text())["results"]["students"]
    assert len(memory) == 3 and all(0 <= one[key] <= 100 for one in memory for key in ("seen", "unseen"))
    report = (run / "report.md").read_text()
    assert "| teacher/chosen | 400 | 0 | 0 | 0 |" in report and "What students memorise" in report


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("warm", [False, True])
def test_four_partitions_three_stages(tmp_path, tiny_models, warm):
    run = ran(tmp_path, tiny_models, {"partitions": 4, "stages": 3, "warm_start": warm})
    nobody_labels_what_it_was_taught(run, rounds=2, partitions=4, each=1)
    first, second = (json.loads((run / f"mckd/round-{n}/student-2/manifest.json").read_text()) for n in (1, 2))
    began = second["inputs"]["model"]
    assert began == ({"kind": "checkpoint", "path": first["results"]["model"]} if warm else first["inputs"]["model"])


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_lost_workers_and_actors_lose_nothing(tmp_path, tiny_models):
    """The teacher's actor dies while it labels, and the worker of a student in the middle of an epoch."""
    dying.FLAG.unlink(missing_ok=True)
    run = ran(
        tmp_path,
        tiny_models,
        {"partitions": 2},
        teachers__main__engine={"kind": "scripted", "function": "answers:takes_its_actor_along"},
        teachers__main__prompt=f"{{input}} {tmp_path}/died",
        teachers__main__shard_rows=32,
        student__training={
            **FEW,
            "max_steps": 60,
            "evaluate_every": 20,
            "losses": {"dying:once": {"teacher_outputs": False}},
        },
        pseudo_targets={},
    )
    assert dying.FLAG.exists() and (tmp_path / "died").exists()
    nobody_labels_what_it_was_taught(run, rounds=1, partitions=2, each=1)
    for name in ("mckd/round-1/student-0", "mckd/round-1/student-1", "mckd/final"):
        lines = map(json.loads, (run / name / "log.jsonl").read_text().splitlines())
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps == sorted(set(steps)) and steps[-1] == 60


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_as_an_ablation_students_label_what_they_were_taught(tmp_path, tiny_models):
    run = ran(tmp_path, tiny_models, {"relabel": "own"})
    for label in pseudo_targets.load_pseudo_targets(run / "mckd/round-1/labels/pseudo_targets.parquet"):
        assert label.lineage and label.lineage.by == f"mckd/round-1/student-{label.lineage.partition}"
    assert "mckd/round-1/memorisation" not in manifests(run)


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_students_tell_each_other_their_most_likely_tokens(tmp_path, tiny_models):
    losses = {"forward_kl": {"weight": 0.5}, "cross_entropy": {"weight": 0.5}}
    causal = {"kind": "config", "model_type": "llama", "settings": LLAMA}
    student = {"model": causal, "training": {**FEW, "losses": losses}, "prompt": "{input} =>"}
    run = ran(
        tmp_path,
        tiny_models,
        {"stages": 3, "exchange": "top_k"},
        student={**student, "sampling": {"max_tokens": 10}},
        teachers__main__engine={"kind": "transformers"},
        pseudo_targets={},
        arms={"distilled": True},
        tokenizer={"kind": "pretrained", "path": str(tiny_models["llama"])},
    )
    kinds = {
        stage: json.loads(found)["stats"]["payload"]["kind"]
        for stage, found in manifests(run).items()
        if stage == "teacher/labels" or "labels-by" in stage
    }
    assert len(kinds) == 5 and set(kinds.values()) == {"top_k"}
    final = json.loads((run / "mckd/final/manifest.json").read_text())
    assert final["stats"]["rows"] + final["stats"]["dev_rows"] == 400
    log = [json.loads(line) for line in (run / "mckd/final/log.jsonl").read_text().splitlines()]
    assert any("forward_kl" in line for line in log)
