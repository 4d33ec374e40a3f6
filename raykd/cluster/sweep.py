"""Run as a script: wait until standard input closes, then end every process that carries the run's mark.

Standard input is a pipe from the driver: it closes when the driver ends, however it ends. Ray's own clean-up runs
only where the driver still can; after SIGKILL its daemons, workers and engines would stay. Uses the standard library
only, because it must start at once. On a system without /proc there is nothing to sweep by, and Ray's own clean-up
is all there is.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path


def marked(mark: bytes) -> list[int]:
    """Process ids, other than this one, whose environment holds the mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended, or is not ours
    return found


def end(pids: list[int], how: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, how)
        except OSError:
            pass


def main(name: str, folder: str, logs: str) -> None:
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(how, signal.SIG_IGN)  # it must outlive an interrupted driver
    sys.stdin.buffer.read()
    mark = f"{name}={Path(folder).name}".encode()
    end(marked(mark), signal.SIGTERM)
    for _ in range(20):
        if not marked(mark):
            break
        time.sleep(0.1)
    for _ in range(10):  # again, for what was being started meanwhile
        end(marked(mark), signal.SIGKILL)
        if not marked(mark):
            break
        time.sleep(0.2)
    for session in Path(folder).glob("session_*/logs"):
        if not session.parent.is_symlink():
            shutil.copytree(
                session, Path(logs) / session.parent.name, dirs_exist_ok=True, ignore_dangling_symlinks=True
            )
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
