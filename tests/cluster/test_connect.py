"""A local Ray is for this machine alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raykd import reaper
from raykd.cluster import connect
from raykd.cluster.connect import MARK
from raykd.errors import ClusterError
from raykd.recipe.cluster import Cluster


def listening() -> set[tuple[str, int]]:
    """(hexadecimal address, process) of TCP sockets on which processes of this Ray's session listen."""
    inodes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[fields[9]] = fields[1].rpartition(":")[0]
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if b"gcs_server" not in command and b"raylet" not in command:
                continue
            if os.environ[MARK].encode() not in (process / "environ").read_bytes():
                continue  # another Ray's
            for fd in (process / "fd").iterdir():
                inode = fd.readlink().name.removeprefix("socket:[").rstrip("]")
                if inode in inodes:
                    found.add((inodes[inode], int(process.name)))
        except OSError:
            continue
    return found


def test_ray_listens_on_loopback_only(ray_session):
    import ray

    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    found = listening()
    assert found and {address for address, _ in found} <= set(loopback)


def test_the_reaper_ends_the_marked_and_no_other(tmp_path):
    name = f"raykd-{os.getpid()}"
    child = "import subprocess as s, time; p = s.Popen(['sleep', '300']); print(p.pid, flush=True); time.sleep(99)"
    marked = subprocess.Popen(
        [sys.executable, "-c", child],
        env={"RAYKD_TEST_MARK": name},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    other = subprocess.Popen(["sleep", "300"], env={})
    assert marked.stdout is not None
    grandchild = int(marked.stdout.readline())
    (tmp_path / name).mkdir()
    ending = reaper.reaper(f"RAYKD_TEST_MARK={name}", tmp_path / name, tmp_path / "logs")
    time.sleep(0.5)
    assert marked.poll() is None  # it waits for its driver to end
    ending.communicate()  # closes its standard input
    assert marked.wait(5) != 0 and other.poll() is None
    stat = Path(f"/proc/{grandchild}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    assert not (tmp_path / name).exists()
    other.kill()
    other.wait()
    marked.stdout.close()


def test_rays_agents_keep_the_mark(ray_session):
    """They write their titles over their environments otherwise, and would outlive a killed driver."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    titles = [Path(f"/proc/{pid}/comm").read_text() for pid, _ in reaper.marked(mark)]
    assert sum(title.startswith(("ray::Dash", "ray::Runtim")) for title in titles) == 2, titles


def test_processes_are_started_with_the_folder_of_modules_on_their_path(monkeypatch, tmp_path):
    for before in ("/one", None):
        monkeypatch.setenv("PYTHONPATH", before) if before else monkeypatch.delenv("PYTHONPATH")
        with connect._on_path([tmp_path / "a.py", tmp_path / "b"]):
            assert os.environ["PYTHONPATH"] == ":".join([*([before] if before else []), str(tmp_path)])
        with connect._on_path([]):
            assert os.environ.get("PYTHONPATH") == before
        assert os.environ.get("PYTHONPATH") == before


def test_a_job_with_modules_of_its_own_is_one_line(monkeypatch, tmp_path):
    import ray

    def refuse(**options):
        assert options["runtime_env"] == {"py_modules": [str(tmp_path / "a.py")]}
        raise ValueError("Failed to merge the Job's runtime env")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match="py_modules of its own: put what they are beside a.py, whose copies"):
        with connect._joined(Cluster(), False, [tmp_path / "a.py"]):
            pass
