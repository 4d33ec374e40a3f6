"""Losses of tests during which a worker dies."""

import os
import signal
from pathlib import Path

import torch.distributed as dist

FLAG = Path(__file__).parents[1] / "build" / "died"
calls = 0


def once(student_NE, at_N):
    """Cross entropy. The last worker is killed in it, once, at its 45th call: after a checkpoint, within an epoch."""
    global calls
    calls += 1
    last = not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
    if last and calls == 45 and not FLAG.exists():
        FLAG.parent.mkdir(exist_ok=True)
        FLAG.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return -student_NE.gather(1, at_N[:, None]).squeeze(1)
