"""A reaper ends every process that has a mark in its environment, once the process that started the reaper has ended.

A mark is an environment variable, `NAME=value`, which child processes inherit. The reaper runs this file as a script.
Its standard input is a pipe from the process that started it, which closes when that process ends, even by SIGKILL.
Ray's and vLLM's own clean-up needs a parent that still runs: after SIGKILL their daemons, workers and engines would
stay. Only the standard library is imported, so that a reaper starts at once. On a system without /proc no marked
process is found, and only the libraries' own clean-up is left.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

# setproctitle, which Ray and vLLM use, would overwrite the environment, and so the mark, with a process's title
KEEP_MARKS = ("SPT_NOENV", "1")

Process = tuple[int, str]  # process id and start time: two processes never have both in common


def reaper(
    mark: str, folder: Path | None = None, logs: Path | None = None, keep: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start a reaper for a mark, in a session of its own; it reaps when its standard input is closed.

    After that it copies the logs of Ray's sessions in `folder` to `logs`, and removes `folder`. `keep` are file
    descriptors that stay open until then, such as that of a lock. Sets an environment variable of this process, so that
    its children keep their marks.
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
    """All processes that have the mark in their environment, but for this one."""
    processes = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                processes.add((int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()[19]))
        except OSError:
            continue  # it ended, or is another user's
    return processes


def alive(processes: set[Process]) -> set[Process]:
    """The processes that still run; a zombie does not run."""
    running = set()
    for pid, start in processes:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == start and fields[0] != "Z":
            running.add((pid, start))
    return running


def end(processes: set[Process], number: signal.Signals) -> None:
    """Send a signal to the processes that still run."""
    for pid, _ in alive(processes):
        try:
            os.kill(pid, number)
        except OSError:
            pass


def main(mark: str, folder: str | None = None, logs: str | None = None) -> None:
    """Wait until standard input closes, then reap: SIGTERM at once, SIGKILL after 1.5 s, 4 s in all."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it must outlive an interrupted driver
    sys.stdin.buffer.read()
    processes = marked(mark.encode())
    end(processes, signal.SIGTERM)
    for turn in range(40):
        processes |= marked(mark.encode())  # again, for processes that were just being started
        if not alive(processes):
            break
        if turn >= 15:
            end(processes, signal.SIGKILL)
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
