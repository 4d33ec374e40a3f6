"""A real Ray head with its dashboard and token authentication, started by hand and ended by its pid."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "http://127.0.0.1:28265"


@contextmanager
def head(folder: Path, *more: str, **variables: str) -> Iterator[dict[str, str]]:
    """Yields the environment of whoever submits to it; `more` are further arguments of `ray start`."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": ADDRESS,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        **variables,
    }
    start = "ray start --head --block --port=26379 --dashboard-port=28265 --dashboard-agent-listen-port=28266 "
    start += "--dashboard-host=127.0.0.1 --object-store-memory=300000000 --ray-client-server-port=28001 "
    start += f"--include-dashboard=true --disable-usage-stats --temp-dir=/tmp/raykd-head-{os.getpid()}"
    command = [*shlex.split(start), *(more or ("--num-cpus=8",))]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 90
        while not _answers():
            assert time.monotonic() < until and started.poll() is None, "the head did not come up"
            time.sleep(0.5)
        yield environment
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(40)
        except subprocess.TimeoutExpired:
            started.kill()


def _answers() -> bool:
    try:
        urllib.request.urlopen(f"{ADDRESS}/api/version", timeout=2)
    except urllib.error.HTTPError as error:
        return error.code == 401  # it wants the token
    except OSError:
        return False
    return True


def finished(
    environment: dict[str, str], *command: str, timeout: float = 700, **options
) -> subprocess.CompletedProcess:
    """A finished command of a user who submits; its stdout has all output, because Ray prints half of it on stderr."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, env=environment, timeout=timeout, **streams, **options)
