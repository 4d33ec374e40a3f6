"""Time and peak memory of one distillation loss, forward and backward: chunked, plain, and the peers' own.

Every run is a process of its own. Its peak is that of its first pass, less the memory in use before it; its time is
that of the second pass. The arms take turns. On a GPU the memory is torch's, and the peak includes the inputs.

    python benchmarks/losses.py --out losses.json
    python benchmarks/losses.py --positions 8192 --hidden 4096 --vocabulary 128256 --dtype bfloat16

The peers run where they are installed (their own environment, with the same torch):

    python3.11 -m venv peers && peers/bin/pip install torch==2.13.0 trl==1.16.0 liger-kernel==0.8.5 transformers==5.19.0
    python benchmarks/losses.py --peers peers/bin/python
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

GB = 2**30
K = 64  # of the arms with a top-k teacher


def inputs(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Hidden states and output layers of both, labels, and the teacher's top-k."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows: int, scale: float) -> torch.Tensor:
        drawn = torch.randn(rows, args.hidden, generator=generator, device=device) * scale
        return drawn.to(getattr(torch, args.dtype))

    tensors = {"hs": draw(args.positions, 1.0), "ws": draw(args.vocabulary, args.hidden**-0.5)}
    tensors |= {"ht": draw(args.positions, 1.0), "wt": draw(args.vocabulary, args.hidden**-0.5)}
    tensors["labels"] = torch.randint(0, args.vocabulary, (args.positions,), generator=generator, device=device)
    if "top" in args.arm:
        pieces = [(h @ tensors["wt"].T).float().log_softmax(1).topk(K) for h in tensors["ht"].split(256)]
        tensors["logprobs"], tensors["ids"] = (torch.cat([p[i] for p in pieces]) for i in (0, 1))
        del tensors["ht"], tensors["wt"]
    tensors["hs"].requires_grad_()
    tensors["ws"].requires_grad_()
    return tensors


def raykd_chunked(x: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    from raykd.losses.divergences import jsd
    from raykd.losses.logits import HeadLogits
    from raykd.losses.loss import make_loss
    from raykd.losses.tokens import TokenBatch, token_losses

    student, teacher = HeadLogits((x["hs"],), (x["ws"],)), HeadLogits((x["ht"],), (x["wt"],))
    batch = TokenBatch(x["labels"], teacher)
    return token_losses([make_loss(jsd, beta=beta)], student, batch).total


def plain(x: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    """The plain way: whole logits, and the mixture by a log-sum-exp."""
    with torch.no_grad():
        teacher = (x["ht"] @ x["wt"].T).float().log_softmax(1)
    student = (x["hs"] @ x["ws"].T).float().log_softmax(1)
    if beta in (0, 1):
        p, q = (student, teacher) if beta else (teacher, student)
        return (p.exp() * (p - q)).sum(1).mean()
    mixed = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    forward = (teacher.exp() * (teacher - mixed)).sum(1)
    return (beta * forward + (1 - beta) * (student.exp() * (student - mixed)).sum(1)).mean()


def raykd_top_k(x: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    from raykd.losses.divergences import forward_kl
    from raykd.losses.logits import HeadLogits
    from raykd.losses.loss import make_loss
    from raykd.losses.teachers import TopK
    from raykd.losses.tokens import TokenBatch, token_losses

    batch = TokenBatch(x["labels"], TopK(x["ids"], x["logprobs"], "renormalise"))
    return token_losses([make_loss(forward_kl)], HeadLogits((x["hs"],), (x["ws"],)), batch).total


def whole_top_k(x: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    """NeMo-RL's form: one log-sum-exp of whole logits and the gathered ones."""
    logits = (x["hs"] @ x["ws"].T).float()
    student = logits.gather(1, x["ids"]) - logits.logsumexp(1, keepdim=True)
    teacher = x["logprobs"].log_softmax(1)
    return (teacher.exp() * (teacher - student)).sum(1).mean()


def liger(x: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # type: ignore[import-not-found]

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta, compiled=x["hs"].is_cuda)
    return loss(x["hs"], x["ws"], x["ht"], x["wt"], x["labels"])


def trl(x: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss  # type: ignore[import-not-found]

    mask = torch.ones_like(x["labels"])[None]
    return _chunked_divergence_loss(x["hs"][None], x["ht"][None], x["ws"], x["wt"], mask, beta)[0]


ARMS: dict[str, Callable] = {
    "raykd, chunked": raykd_chunked,
    "plain": plain,
    "Liger": liger,
    "TRL": trl,
    "raykd, chunked, top-64": raykd_top_k,
    "whole logits, top-64": whole_top_k,
}
PEERS = ("Liger", "TRL")


def status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0.0


def measure(args: argparse.Namespace) -> dict:
    """Seconds and peak bytes of one pass forward and backward, in this process."""
    torch.set_num_threads(args.threads)
    small = inputs(argparse.Namespace(**{**vars(args), "positions": 96, "vocabulary": 1000}))
    ARMS[args.arm](small, args.beta).backward()  # memory of imports and of torch's start is not the loss's
    x = inputs(args)
    gpu = x["hs"].is_cuda

    def step() -> float:
        x["hs"].grad = x["ws"].grad = None
        gc.collect()
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        ARMS[args.arm](x, args.beta).backward()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    if gpu:
        step()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = 0.0 if gpu else status("VmRSS")
    step()
    peak = torch.cuda.max_memory_allocated() if gpu else status("VmHWM") - before
    return {"seconds": step(), "peak": peak, "loss": ARMS[args.arm](x, args.beta).item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--beta", type=float, default=0.5, help="of the generalised JSD; 0 is forward KL, 1 reverse KL")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers", help="the Python that has liger-kernel and trl")
    parser.add_argument("--arm", default="", help="measure one arm in this process and print it")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measure(args)))
        return
    results: dict[str, list[dict]] = {}
    arms = [arm for arm in ARMS if args.peers or arm not in PEERS]
    for turn in range(args.runs):
        for arm in arms:
            python = args.peers if arm in PEERS else sys.executable
            command = [python, __file__, *sys.argv[1:], "--arm", arm]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                print(f"{arm}: {ran.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            result = json.loads(ran.stdout.splitlines()[-1])
            results.setdefault(arm, []).append(result)
            print(f"run {turn + 1}  {arm:24} {result['seconds']:8.3f} s {result['peak'] / GB:7.2f} GB", file=sys.stderr)
    machine = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {args.threads} threads"
    )
    shape = f"N={args.positions}, H={args.hidden}, V={args.vocabulary}, {args.dtype}, beta={args.beta:g}"
    print(f"{shape}; {machine}; torch {torch.__version__}; medians of {args.runs}")
    print("| arm | seconds | of plain | peak GB | of plain | loss |\n|---|---|---|---|---|---|")
    table = {}
    for arm, runs in results.items():
        seconds, peak = (statistics.median(run[name] for run in runs) for name in ("seconds", "peak"))
        table[arm] = {"seconds": seconds, "peak_bytes": peak, "loss": runs[0]["loss"]}
    for arm, row in table.items():
        baseline = table["whole logits, top-64" if "top" in arm else "plain"]
        ratios = row["seconds"] / baseline["seconds"], row["peak_bytes"] / baseline["peak_bytes"]
        cells = [f"{row['seconds']:.3f}", f"{ratios[0]:.2f}", f"{row['peak_bytes'] / GB:.2f}", f"{ratios[1]:.2f}"]
        print(f"| {arm} | {' | '.join(cells)} | {row['loss']:.6f} |")
    if args.out:
        Path(args.out).write_text(json.dumps({"shape": vars(args), "machine": machine, "arms": table}, indent=1))


if __name__ == "__main__":
    main()
