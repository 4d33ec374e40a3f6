"""What a payload costs on disk, and how much of the teacher's distribution it keeps, at a vocabulary of 152,000.

    python benchmarks/payloads.py [positions]

Logits are synthetic: a bell of width 2.5 over the vocabulary, and 60 likely tokens above it. The student is the
teacher's logits with noise of width 1. Total variation is between the payload's distribution and the teacher's, per
position. The error is the difference between the student's cross entropies against the one and against the other: its
mean over positions is a bias, its spread is noise that training averages.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from raykd.engines.engine import PseudoTarget
from raykd.recipe.generation import HiddenPayload, Payload, SampledPayload, TopKPayload
from raykd.store.open import open_store
from raykd.store.payloads import VALUES
from raykd.store.read import read_rows
from raykd.store.schema import shard_table
from raykd.store.verify import describe_store
from raykd.store.write import write_shard

VOCABULARY, HIDDEN, LENGTH = 152_000, 1024, 64
KINDS: dict[str, Payload] = {
    "top 64": TopKPayload(kind="top_k", k=64),
    "top 8": TopKPayload(kind="top_k", k=8),
    "sampled, 50 draws": SampledPayload(kind="sampled", draws=50),
    "hidden, 1,024 wide": HiddenPayload(kind="hidden"),
}
PUBLISHED = "DistillKit publishes 114 (50 exact, 1 bin) to 300 (128, 16) bytes per token for its compressed logits."


def main() -> None:
    positions = int(sys.argv[1]) if sys.argv[1:] else 1024
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator) * 2.5 / HIDDEN**0.5
    hidden = torch.randn(positions, HIDDEN, generator=generator)
    logits = hidden @ head.T
    likely = torch.randint(VOCABULARY, (positions, 60), generator=generator)
    logits.scatter_add_(1, likely, 8 + 4 * torch.rand(positions, 60, generator=generator))
    teacher = logits.log_softmax(-1)
    student = (logits + torch.randn(logits.shape, generator=generator)).log_softmax(-1)
    print("| payload | bytes per token | total variation | error of cross entropy, nats: mean | spread |")
    print("|---|---|---|---|---|")
    print(f"| everything, bfloat16 | {2 * VOCABULARY:,} | 0 | 0 | 0 |")
    for name, payload in KINDS.items():
        size, values = stored(payload, teacher, hidden, generator)
        if payload.kind == "hidden":
            # head and boost give the logits again: only the rounding of the hidden states is lost
            again = values @ head.T
            again.scatter_add_(1, likely, (logits - hidden @ head.T).gather(1, likely) / _times(likely))
            probabilities = again.softmax(-1)
        else:
            probabilities = values
        variation = (probabilities - teacher.exp()).abs().sum(-1) / 2
        error = -(probabilities * student).sum(-1) + (teacher.exp() * student).sum(-1)
        print(f"| {name} | {size:.0f} | {variation.mean():.4f} | {error.mean():+.4f} | {error.std():.3f} |")
    print(f"\n{PUBLISHED}")


def _times(likely: torch.Tensor) -> torch.Tensor:
    """How often each of the likely tokens was drawn at its position."""
    return (likely[:, :, None] == likely[:, None, :]).sum(-1)


def stored(
    payload: Payload, teacher: torch.Tensor, hidden: torch.Tensor, generator: torch.Generator
) -> tuple[float, torch.Tensor]:
    """Bytes per token of the payload's columns on disk; and what is read back, probabilities or hidden states."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder, {"model": "synthetic"}, payload)
        pseudo_targets = []
        for at in range(0, len(teacher), LENGTH):
            part = slice(at, at + LENGTH)
            arrays = recorded(payload, teacher[part], hidden[part], generator)
            ids = np.zeros(len(teacher[part]), np.int32)
            pseudo_targets.append(
                [
                    PseudoTarget(
                        text="",
                        token_ids=ids,
                        logprobs=ids.astype(np.float32),
                        finish_reason="length",
                        payload=arrays,
                    )
                ]
            )
        keys = [number.to_bytes(16, "big") for number in range(len(pseudo_targets))]
        write_shard(store, shard_table(keys, range(1), pseudo_targets, payload))
        names = list(VALUES[payload.kind])
        sizes = describe_store(store)["bytes_per_token_of"]
        (rows,) = (read_rows(store, shard, names) for shard in store.shards())
        columns = {name: torch.tensor(np.concatenate(rows[name].to_numpy())) for name in names}
    return sum(sizes[name] for name in names), read(payload, columns, teacher.shape)


def recorded(
    payload: Payload, teacher: torch.Tensor, hidden: torch.Tensor, generator: torch.Generator
) -> dict[str, np.ndarray]:
    if isinstance(payload, TopKPayload):
        top = teacher.topk(payload.k)
        return {"top_ids": top.indices.int().numpy(), "top_logprobs": top.values.numpy()}
    if isinstance(payload, SampledPayload):
        drawn = torch.multinomial(teacher.exp(), payload.draws, replacement=True, generator=generator)
        unique = [row.unique(return_counts=True) for row in drawn]
        return {
            "sampled_ids": torch.cat([ids for ids, _ in unique]).int().numpy(),
            "sampled_counts": torch.cat([counts for _, counts in unique]).numpy().astype(np.uint8),
            "sampled_lengths": np.array([len(ids) for ids, _ in unique], np.int32),
        }
    return {"hidden": hidden.half().numpy()}


def read(payload: Payload, columns: dict[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    probabilities = torch.zeros(shape)
    if isinstance(payload, TopKPayload):  # scaled to sum to one, as most do
        top, ids = columns["top_logprobs"].reshape(shape[0], -1).exp(), columns["top_ids"].reshape(shape[0], -1)
        return probabilities.scatter_(1, ids.long(), top / top.sum(-1, keepdim=True))
    if isinstance(payload, SampledPayload):
        rows = torch.arange(shape[0]).repeat_interleave(columns["sampled_lengths"].long())
        probabilities[rows, columns["sampled_ids"].long()] = columns["sampled_counts"].float() / payload.draws
        return probabilities
    return columns["hidden"].reshape(shape[0], -1).float()


if __name__ == "__main__":
    main()
