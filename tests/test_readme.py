"""The README's commands, run as written (with two training steps where one would take minutes)."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, raykd
from ray_head import ADDRESS, finished, head

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SHORT = [
    "teachers.main.fine_tune.max_steps=2",
    "student.training.max_steps=2",
    "student.training.evaluate_every=1",
    "data.unlabelled.limit=100",
    "data.gold.limit=2000",
    "data.test.main.limit=50",
]


def test_every_command_of_the_readme_is_known_here():
    tested = ["make demo", "make test", "raykd check demo", "raykd run demo", "raykd report runs/demo"]
    submit = "ray job submit --working-dir . -- python -m raykd run demo output=/shared/runs"
    needs_aws = ["ray up cluster.yaml", "ray dashboard cluster.yaml", "ray down cluster.yaml"]
    assert sorted(COMMANDS) == sorted([*tested, submit, "ray job list", *needs_aws])


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_check_as_written():
    done = raykd("check", "demo")
    assert done.returncode == 0 and done.stdout.startswith("name: demo\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_and_report_as_written(tmp_path):
    """In a folder that is not the checkout: the shipped recipe is found by its name."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in ("raykd check demo", "raykd run demo", "raykd report runs/demo"):
        assert command in COMMANDS
        extra = SHORT if " run " in command else []
        done = subprocess.run(
            [*shlex.split(command), *extra], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/demo/report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_job_submit_as_written(tmp_path):
    """Against a real head with its dashboard, which wants a token; status, logs and report reach the submitter."""
    command = next(c for c in COMMANDS if c.startswith("ray job submit"))
    with head(tmp_path, HF_TOKEN="planted-51c0de") as environment:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{ADDRESS}/api/jobs/", timeout=10)
        written = shlex.split(command.replace("/shared/runs", str(tmp_path / "runs")))
        at = written.index("--")
        done = finished(environment, *written[:at], "--submission-id", "raykd-readme", *written[at:], *SHORT, cwd=ROOT)
        assert done.returncode == 0, done.stdout[-6000:]
        assert "joined the Ray cluster" in done.stdout and "mckd/final: train" in done.stdout
        report = json.loads((tmp_path / "runs/demo/report.json").read_text())
        assert report["complete"] and "phoneme_error_rate" in done.stdout
        assert " succeeded" in finished(environment, "ray", "job", "status", "raykd-readme").stdout
        assert "mckd/final: train" in finished(environment, "ray", "job", "logs", "raykd-readme").stdout
        listed = finished(environment, "ray", "job", "list")
        assert "SUCCEEDED" in listed.stdout
        assert "planted-51c0de" not in listed.stdout + done.stdout
        for path in (tmp_path / "runs").rglob("*"):
            assert not path.is_file() or b"planted-51c0de" not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_is_stopped_takes_its_engines_along(tmp_path):
    """vLLM runs in a process of its own, which Ray does not know."""
    more = ["data.unlabelled.limit=100000", f"output={tmp_path / 'runs'}", "teachers.main.fine_tune.max_steps=2"]
    with head(tmp_path, RAYKD_TEST="stopped") as environment:
        submit = ["ray", "job", "submit", "--no-wait", "--submission-id", "raykd-stopped", "--working-dir", "."]
        done = finished(environment, *submit, "--", "python", "-m", "raykd", "label", "demo", *more, cwd=ROOT)
        assert done.returncode == 0, done.stdout
        until = time.monotonic() + 400
        while not (engines := processes(b"RAYKD_ENGINE=")):
            assert time.monotonic() < until, finished(environment, "ray", "job", "logs", "raykd-stopped").stdout[-3000:]
            time.sleep(1)
        assert finished(environment, "ray", "job", "stop", "raykd-stopped").returncode == 0
        until = time.monotonic() + 60
        while engines & processes(b"RAYKD_ENGINE="):
            assert time.monotonic() < until, "engines outlived their job"
            time.sleep(1)
        assert " stopped" in finished(environment, "ray", "job", "status", "raykd-stopped").stdout


def processes(mark: bytes) -> set[int]:
    """Ids of the processes with this in their environment that this test's head started."""
    pids = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes()
            if mark in variables and b"RAYKD_TEST=stopped" in variables:
                pids.add(int(entry.name))
        except OSError:
            continue
    return pids
