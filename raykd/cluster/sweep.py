"""Run as a script: wait until standard input closes, then end every process of the run.

Standard input is a pipe from the driver: it closes when the driver ends, however it ends. Ray's own clean-up runs
only where the driver still can; after SIGKILL its daemons, workers and engines would stay. A process is of the run if
its environment holds the run's mark. Uses the standard library only, because it must start at once. On a system
without /proc there is nothing to sweep by, and Ray's own clean-up is all there is.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

Process = tuple[int, str]  # process id and start time, which together never come again


def marked(mark: bytes) -> set[Process]:
    """Processes that hold the mark in their environment; not this one."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                found.add((int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()[19]))
        except OSError:
            continue  # it ended, or is not ours
    return found


def alive(processes: set[Process]) -> set[Process]:
    """Those that still run; a zombie does not."""
    found = set()
    for pid, start in processes:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == start and fields[0] != "Z":
            found.add((pid, start))
    return found


def end(processes: set[Process], how: signal.Signals) -> None:
    for pid, _ in alive(processes):
        try:
            os.kill(pid, how)
        except OSError:
            pass


def main(name: str, folder: str, logs: str) -> None:
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(how, signal.SIG_IGN)  # it must outlive an interrupted driver
    sys.stdin.buffer.read()
    mark = f"{name}={Path(folder).name}".encode()
    doomed = marked(mark)
    end(doomed, signal.SIGTERM)
    for turn in range(40):
        doomed |= marked(mark)  # again, for what was being started meanwhile
        if not alive(doomed):
            break
        if turn >= 15:
            end(doomed, signal.SIGKILL)
        time.sleep(0.1)
    for session in Path(folder).glob("session_*/logs"):
        if not session.parent.is_symlink():
            shutil.copytree(
                session, Path(logs) / session.parent.name, dirs_exist_ok=True, ignore_dangling_symlinks=True
            )
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
