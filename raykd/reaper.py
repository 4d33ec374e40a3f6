"""Reapers: end every process that holds a mark in its environment, once the process that made the mark has ended.

A reaper runs this file as a script. Its standard input is a pipe from its maker: it closes when the maker ends,
however it ends. Ray's and vLLM's own clean-up runs only where their parent still can; after SIGKILL daemons, workers
and engines would stay. Uses the standard library only, because it must start at once. On a system without /proc there
is nothing to reap by, and the libraries' own clean-up is all there is.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

# setproctitle, in Ray and vLLM, would write a process's title over its environment, mark and all
KEEP_MARKS = ("SPT_NOENV", "1")

Process = tuple[int, str]  # process id and start time, which together never come again


def reaper(mark: str, folder: Path | None = None, logs: Path | None = None, keep: tuple[int, ...] = ()):
    """Start one for `NAME=value`, in a session of its own; closing its stdin tells it to reap.

    It then copies the logs of Ray's sessions below `folder` to `logs` and removes `folder`. `keep`: file descriptors
    that it holds until then. Sets a variable so that children keep their marks.
    """
    os.environ[KEEP_MARKS[0]] = KEEP_MARKS[1]
    command = [sys.executable, "-S", __file__, mark, *(str(path) for path in (folder, logs) if path)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=keep,
    )


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


def main(given: str, folder: str | None = None, logs: str | None = None) -> None:
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(how, signal.SIG_IGN)  # it must outlive an interrupted driver
    sys.stdin.buffer.read()
    mark = given.encode()
    doomed = marked(mark)
    end(doomed, signal.SIGTERM)
    for turn in range(40):
        doomed |= marked(mark)  # again, for what was being started meanwhile
        if not alive(doomed):
            break
        if turn >= 15:
            end(doomed, signal.SIGKILL)
        time.sleep(0.1)
    if folder is None or logs is None:
        return
    for session in Path(folder).glob("session_*/logs"):
        if not session.parent.is_symlink():
            shutil.copytree(
                session, Path(logs) / session.parent.name, dirs_exist_ok=True, ignore_dangling_symlinks=True
            )
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
