"""Ray Train around the loop, and how much fits at once."""

import json
from dataclasses import replace
from pathlib import Path

import broken
import pytest
from conftest import T5, pairs, write_rows

from raykd.cluster import resources, train
from raykd.data.prompts import PromptEncoder
from raykd.data.sources import FileSource
from raykd.errors import ClusterError, TrainingError
from raykd.recipe.cluster import Cluster, Workers
from raykd.recipe.load import load_recipe
from raykd.recipe.models import FromConfig
from raykd.recipe.training import Training
from raykd.training.job import MarkedSource, TrainingSpec


def job(folder: Path, tokenizer: Path, **changes) -> TrainingSpec:
    (folder / "t").mkdir(parents=True)
    settings = {"learning_rate": 0.01, "max_steps": 20, "batch_tokens": 256, "evaluate_every": 10, **changes}
    return TrainingSpec(
        name="t",
        model=FromConfig(kind="config", model_type="t5", settings=T5),
        tokenizer=str(tokenizer),
        training=Training(**settings),
        rows=MarkedSource(FileSource(str(write_rows(folder / "rows.jsonl", pairs(203)))), "rows"),
        student=PromptEncoder(str(tokenizer), "{input}", encoder=True),
        folder=str(folder / "t"),
        tokens=str(folder / "tokens"),
        seed=1,
        threads=1,
    )


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "t" / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line] + [
        line["dev_loss"] for line in lines if "dev_loss" in line
    ]


def test_two_workers_train_as_one_does_and_bars_are_fed(tmp_path, shared_tokenizer, ray_session):
    seen = []
    for number in (1, 2):
        cluster = Cluster(student=Workers(workers=number, resources={"CPU": 1}))
        result = train.fit(job(tmp_path / str(number), shared_tokenizer), cluster, lambda step, note: seen.append(step))
        assert result["stats"]["workers"] == number and Path(result["model"]).is_dir()
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), rel=1e-3)
    assert 20 in seen


def test_an_error_in_the_loop_is_one_line_and_not_tried_again(tmp_path, shared_tokenizer, ray_session):
    broken = job(tmp_path, shared_tokenizer, max_target_tokens=1)
    with pytest.raises(TrainingError, match=r"t: row r\d+: target of \d+ tokens, at most 1") as error:
        train.fit(replace(broken, name="t"), Cluster(), lambda step, note: None)
    assert "\n" not in str(error.value)


@pytest.mark.timeout(200)
def test_an_error_of_one_worker_ends_them_all(tmp_path, shared_tokenizer, ray_session):
    """Only the first worker reads the rows; the other waits for it."""
    broken = job(tmp_path, shared_tokenizer, max_target_tokens=1)
    cluster = Cluster(student=Workers(workers=2, resources={"CPU": 1}))
    with pytest.raises(TrainingError, match=r"t: row r\d+: target of \d+ tokens, at most 1") as error:
        train.fit(broken, cluster, lambda step, note: None)
    assert "\n" not in str(error.value)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_python_in_a_loss_is_not_tried_again(tmp_path, shared_tokenizer, ray_session, workers):
    broken.CALLS.unlink(missing_ok=True)
    spec = job(tmp_path, shared_tokenizer, losses={"broken:loss": {"teacher_outputs": False}})
    cluster = Cluster(student=Workers(workers=workers, resources={"CPU": 1}))
    with pytest.raises(TrainingError) as error:
        train.fit(spec, cluster, lambda step, note: None)
    assert str(error.value) == "t: ValueError: no values today"
    assert 1 <= len(broken.CALLS.read_text().splitlines()) <= workers  # not once more for each of the 3 retries


def test_how_many_fit_at_once(ray_session):
    have = resources.capacity(Cluster())["CPU"]
    assert resources.at_once({"CPU": have / 2}, 1, Cluster()) == 2
    assert resources.at_once({"CPU": 1}, int(have), Cluster()) == 1
    assert resources.at_once({"CPU": have + 1}, 1, Cluster()) == 1  # in turn, never none
    grown = Cluster(capacity={"CPU": 64, "GPU": 3})
    assert resources.at_once({"CPU": 1, "GPU": 1}, 1, grown) == 3
    assert resources.trainings_at_once(Cluster(student=Workers(resources={"CPU": have})), 5).count == 1


def test_more_than_the_cluster_may_grow_to_is_refused(ray_session):
    demo = load_recipe(
        Path(__file__).parents[2] / "pipelines/recipes/demo.yaml", ["cluster.teacher.resources={GPU: 2}"]
    )
    with pytest.raises(ClusterError, match="cluster.teacher: needs GPU 2 x 1, the cluster may grow to 0"):
        resources.check(demo)
    resources.check(demo.model_copy(update={"cluster": demo.cluster.model_copy(update={"capacity": {"GPU": 2}})}))
