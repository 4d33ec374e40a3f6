"""Versions agree wherever they stand, and the wheel alone can check a recipe."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {"cpu": ROOT / "requirements-cpu.lock", "vllm": ROOT / "requirements-vllm.lock"}
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"}


def pins(lines) -> dict[str, str]:
    """Name to version of the requirements that hold on Linux x86-64 with this Python."""
    environment = {key: str(value) for key, value in {**default_environment(), **LINUX}.items()}
    versions = {}
    for line in lines:
        requirement = Requirement(line)
        if requirement.name != "raykd" and (not requirement.marker or requirement.marker.evaluate(environment)):
            (pin,) = requirement.specifier  # exactly one, or the file is no lock
            assert pin.operator == "==", line
            versions[canonicalize_name(requirement.name)] = pin.version
    return versions


def locked(extra: str) -> dict[str, str]:
    return pins(line for line in LOCKS[extra].read_text().splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("extra", LOCKS)
def test_locks_hold_the_versions_of_pyproject(extra):
    extras = PROJECT["optional-dependencies"]
    wanted = pins(
        PROJECT["dependencies"] + sum((extras[name] for name in ("run", extra, "demo", "test", "wandb", "mlflow")), [])
    )
    lock = locked(extra)
    assert len(wanted) > 15
    assert {name: lock.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("extra", LOCKS)
def test_locks_name_no_address_and_no_folder(extra):
    text = LOCKS[extra].read_text()
    assert not re.findall(r"://|--find-links|--index-url|--extra-index-url|@ file| /", text)


def test_the_cpu_lock_has_no_cuda_and_nothing_that_breaks_on_cpu_torch():
    unwanted = re.compile(r"torchvision|torchaudio|torchcodec|triton|nvidia-|cuda-|vllm$|cupy|flashinfer")
    assert not [name for name in locked("cpu") if unwanted.match(name)]
    assert [name for name in locked("vllm") if unwanted.match(name)]  # so the pattern finds some


def test_the_cpu_lock_is_what_runs_here():
    """A test run on other versions than a user gets proves little."""
    if not (ROOT / ".venv" / f".{LOCKS['cpu'].name}").exists() or sys.prefix != str(ROOT / ".venv"):
        pytest.skip("not the environment of `make setup`")
    from importlib.metadata import version

    lock = locked("cpu")
    assert {name: version(name).split("+")[0] for name in lock} == lock


@pytest.mark.slow
def test_the_wheel_alone_checks_a_shipped_recipe(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("raykd", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = ["-m", "pip", "-q", "--disable-pip-version-check"]
    build = [sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = tmp_path.glob("raykd-*.whl")

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, *pip, "install", wheel], check=True, timeout=200
    )  # with its base dependencies, as a user does

    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    outside = tmp_path / "outside"
    outside.mkdir()
    checked = subprocess.run(
        [tmp_path / "venv" / "bin" / "raykd", "check", "demo"],
        cwd=outside, env=clean, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    assert "mckd" in checked.stdout
    absent = "import importlib.util as u; print([n for n in ('torch', 'ray', 'vllm') if u.find_spec(n)])"
    seen = subprocess.run([python, "-c", absent], cwd=outside, env=clean, capture_output=True, text=True, timeout=60)
    assert seen.stdout.strip() == "[]"
