"""The README's commands, run as written (with two training steps where one would take minutes)."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, raykd

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SHORT = [
    "teacher.fine_tune.max_steps=2",
    "student.training.max_steps=2",
    "student.training.evaluate_every=1",
    "data.unlabelled.limit=100",
    "data.gold.limit=2000",
    "data.test.limit=50",
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
    """Against a real head with its dashboard, started by hand and ended by its pid."""
    command = next(c for c in COMMANDS if c.startswith("ray job submit"))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:28265",
        "RAY_AUTH_MODE": "disabled",  # else the head wants a token that only its own user has
        "HF_TOKEN": "planted-51c0de",
    }
    start = "ray start --head --block --port=26379 --dashboard-port=28265 --dashboard-agent-listen-port=28266 "
    start += "--dashboard-host=127.0.0.1 --num-cpus=8 --object-store-memory=300000000 --ray-client-server-port=28001 "
    start += f"--include-dashboard=true --disable-usage-stats --temp-dir=/tmp/raykd-head-{os.getpid()}"
    head = subprocess.Popen(shlex.split(start), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen("http://127.0.0.1:28265/api/version", timeout=2)
                break
            except OSError:
                assert time.monotonic() < until, "the head did not come up"
                time.sleep(0.5)
        written = command.replace("/shared/runs", str(tmp_path / "runs"))
        run = [*shlex.split(written), *SHORT]
        done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=700)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "joined the Ray cluster" in done.stdout
        assert (tmp_path / "runs/demo/report.json").exists()
        listed = subprocess.run(["ray", "job", "list"], env=environment, capture_output=True, text=True, timeout=60)
        assert "SUCCEEDED" in listed.stdout
        assert "planted-51c0de" not in listed.stdout + done.stdout
        for path in (tmp_path / "runs").rglob("*"):
            assert not path.is_file() or b"planted-51c0de" not in path.read_bytes(), path
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(40)
        except subprocess.TimeoutExpired:
            head.kill()
