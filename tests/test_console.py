"""What the user sees, on a terminal and in a log."""

import io
import os
import pty
import sys
import time
from types import SimpleNamespace

from raykd.console import Console


def test_a_log_has_lines_with_rate_and_time_left(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("raykd.console.time", SimpleNamespace(monotonic=lambda: clock.now))
    console = Console(every=0)
    console.out = io.StringIO()
    with console.bar("labels", 100, "rows") as update:
        update(40)  # done before: not this run's rate
        clock.now += 1.05
        update(50, "7 tokens/s")
    (line,) = console.out.getvalue().splitlines()
    assert line == "[00:01] labels: 50/100 rows, 9.5 rows/s, 00:05 left, 7 tokens/s"


def test_a_terminal_has_live_bars_for_several_at_once():
    main, side = pty.openpty()
    console = Console()
    with os.fdopen(side, "w") as console.out:
        with console.bar("first", 10, "steps") as one, console.bar("second", 20, "rows") as two:
            one(5, "loss 1.0")
            two(20)
            console.say("a line between")
            time.sleep(0.3)
        shown = os.read(main, 100_000).decode()
    for part in ("first", "second", "5/10", "20/20", "loss 1.0", "a line between", "steps/s"):
        assert part in shown
    assert console._progress is None
    os.close(main)


def test_what_libraries_print_goes_to_its_file_and_the_console_stays(tmp_path, capfd):
    console = Console()
    with console.quiet(tmp_path / "logs" / "driver.log"):
        os.write(1, b"noise\n")
        os.write(2, b"noise from below")
        console.say("news")
    print("after", file=sys.stderr)
    out, err = capfd.readouterr()
    assert "news" in out and "noise" not in out + err and err == "after\n"
    assert (tmp_path / "logs" / "driver.log").read_text().count("noise") == 2


def test_verbose_shows_everything(tmp_path, capfd):
    with Console(verbose=True).quiet(tmp_path / "driver.log"):
        os.write(2, b"noise")
    assert capfd.readouterr().err == "noise" and not (tmp_path / "driver.log").exists()
