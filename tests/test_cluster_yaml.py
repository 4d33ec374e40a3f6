"""The shipped cluster file is one that Ray's launcher takes, and asks for what raykd's stages ask for."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from raykd.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load(TEXT)


def test_rays_launcher_takes_it(cluster):
    util = pytest.importorskip("ray.autoscaler._private.util")
    util.validate_config(util.prepare_config(cluster))


def test_rays_launcher_refuses_an_unknown_key(cluster):
    """So that the test above can fail."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    with pytest.raises(Exception, match="head_node_typo"):
        util.validate_config(util.prepare_config({**cluster, "head_node_typo": 1}))


@pytest.mark.parametrize(
    "group, resource, other",
    [("teacher_gpu", "raykd_teacher", "raykd_student"), ("student_gpu", "raykd_student", "raykd_teacher")],
)
def test_gpu_groups_scale_from_none_and_carry_their_resource(cluster, group, resource, other):
    settings = cluster["available_node_types"][group]
    assert settings["min_workers"] == 0 < settings["max_workers"]
    assert settings["resources"][resource] == settings["resources"]["GPU"] == 1
    assert other not in settings["resources"]
    assert settings["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_head_has_no_gpu_and_stays(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]


def test_it_says_what_to_edit_and_why_spot_is_safe():
    assert TEXT.count("# EDIT") >= 4
    assert "spot is safe" in TEXT and "on-demand" in TEXT


def test_nodes_run_the_pinned_ray(cluster):
    """Ray's AWS defaults install a nightly build; an own, empty list keeps them out."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(cluster)
    commands = [line for key in prepared if key.endswith("setup_commands") for line in prepared[key]]
    assert not [line for line in commands if "ray" in line]
    assert prepared["docker"]["image"]


def test_the_kubernetes_job_is_the_same_cluster(cluster):
    """That it is valid by KubeRay's own schema was tried by hand (docs/tested.md): the schema is not in a package."""
    job = yaml.safe_load((ROOT / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" and spec["authOptions"] == {"mode": "token"}
    for group in spec["workerGroupSpecs"]:
        launched = cluster["available_node_types"][f"{group['groupName']}_gpu"]
        assert (group["minReplicas"], group["maxReplicas"]) == (0, launched["max_workers"])
        resources = json.loads(json.loads(group["rayStartParams"]["resources"].strip("'")))
        assert resources == {name: 1 for name in launched["resources"] if name.startswith("raykd_")}
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1" and container["volumeMounts"]
    program, command, name, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (program, command, name) == ("raykd", "run", "demo")
    settings = load_recipe(ROOT / "pipelines/recipes/demo.yaml", overrides).cluster
    assert settings.teacher.resources["raykd_teacher"] == settings.student.resources["raykd_student"] == 1
    assert settings.capacity == {"CPU": 32, "GPU": 6, "raykd_teacher": 2, "raykd_student": 4}
