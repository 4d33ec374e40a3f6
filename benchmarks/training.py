"""The training loop against its peers: the same model, rows, optimizer and threads, in interleaved rounds.

    python benchmarks/training.py [--task words|slots|instructions] [--rows N] [--rounds N] [--arms NAME,NAME]
        [--snips FILE] [--instructions FILES --tokenizer FOLDER --trl-python PYTHON]

words: letters to phonemes (CMUdict), a T5 of the demo's size. slots: Snips utterances to their intent and slots, a
T5 of 4+4 layers x 256. instructions: a causal student of 17 million parameters, losses on answers only; TRL runs in
a Python of its own. Every arm sees every row once, in a process of its own that has trained a little before. Seconds
run from the first request for a batch to the last step, waiting for data included; nothing is evaluated, logged or
saved meanwhile. dev loss is cross entropy per target token on the same held-out rows, by one program for all arms.

    raykd            batches of BUDGETS padded tokens, by length
    raykd, N rows    the same, with the budget that holds about N rows: steps of the size of another arm's
    trainer, best    Seq2SeqTrainer, grouped by length, as many rows per batch as raykd has on average
    trainer, default Seq2SeqTrainer, 8 rows per batch in random order
    mckd authors     the same, 2 rows per batch, 16 batches accumulated
    trl, packed      SFTTrainer, packing, 1,024 tokens per batch and as many accumulated as raykd's batches hold
    trl, packed flat the same, all packs of a step in one forward
    trl, grouped     SFTTrainer, padded, grouped by length, as many rows per batch as raykd has on average
    trl, default     SFTTrainer, padded, 8 rows per batch; without its gradient checkpointing and bfloat16
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RATE, THREADS, WARMUP, DECAY = 0.002, 2, 0.1, 0.01
WARM_STEPS = 3  # before anything is measured
T5 = {"num_heads": 8, "relative_attention_num_buckets": 64, "dropout_rate": 0.0}
MODELS = {
    "words": ("t5", {**T5, "d_model": 64, "d_kv": 16, "d_ff": 192, "num_layers": 3, "num_decoder_layers": 2}),
    "slots": ("t5", {**T5, "d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 4, "num_decoder_layers": 4}),
    "instructions": (
        "llama",
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
    ),
}
BUDGETS = {"words": 1280, "slots": 2048, "instructions": 4096}  # padded tokens of raykd's batches
PACK = 1024  # tokens of a pack
ENCODERS = ["raykd", "trainer, best", "raykd, 8 rows", "trainer, default", "raykd, 32 rows", "mckd authors"]
LIKE = {"trainer, default": "raykd, 8 rows", "mckd authors": "raykd, 32 rows"}  # steps of one size, so losses compare
ARMS = {
    "words": ENCODERS,
    "slots": ENCODERS,
    "instructions": ["raykd", "trl, packed", "trl, packed flat", "trl, grouped", "trl, default"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(MODELS), default="words")
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", default="all", help="some of the task's, with commas as in 'raykd;trl, packed'")
    parser.add_argument("--workers", type=int, default=0, help="data loading processes of 'trainer, best'")
    parser.add_argument("--snips", help="its train.jsonl.gz")
    parser.add_argument("--instructions", help="JSONL files, with commas between")
    parser.add_argument("--tokenizer", help="a folder; default: one of the rows' words")
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.arm:
        run(settings.arm, Path(settings.folder))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, settings)
        arms = [arm for arm in ARMS[settings.task] if settings.arms == "all" or arm in settings.arms.split(";")]
        results: dict[str, list[dict]] = {arm: [] for arm in arms}
        for number in range(settings.rounds):
            for arm in reversed(arms) if number % 2 else arms:
                results[arm].append(measure(arm, folder, settings))
                if arm == "raykd":  # the best peers take as many rows per batch
                    rows = results[arm][0]["rows"] / results[arm][0]["steps"]
                    (folder / "batch.json").write_text(json.dumps(round(rows)))
        print_table(results)


def measure(arm: str, folder: Path, settings: argparse.Namespace) -> dict:
    program = settings.trl_python if arm.startswith("trl") else sys.executable
    command = [program, __file__, "--task", settings.task, "--arm", arm, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    result = json.loads(done.stdout.strip().splitlines()[-1])
    result["dev_loss"] = dev_loss(Path(result.pop("model")), folder)
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"arm": arm, **result, "load": load}), file=sys.stderr, flush=True)
    return result


def print_table(results: dict[str, list[dict]]) -> None:
    """Medians; ratios are taken within a round."""
    print("| arm | rows/step | rows/s | target tokens/s | padding | dev loss | raykd is faster by | with such steps |")
    print("|---|---|---|---|---|---|---|---|")
    rates = {arm: [result["rows"] / result["seconds"] for result in of_arm] for arm, of_arm in results.items()}

    def faster(own: str | None, arm: str) -> str:
        if own is None or own == arm or arm in LIKE.values():
            return ""
        ratios = [ours / theirs for ours, theirs in zip(rates.get(own, []), rates[arm], strict=False)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""

    for arm, of_arm in results.items():
        tokens = statistics.median(result["tokens"] / result["seconds"] for result in of_arm)
        loss, rate, first = statistics.median(r["dev_loss"] for r in of_arm), statistics.median(rates[arm]), of_arm[0]
        cells = [arm, f"{first['rows'] / first['steps']:.0f}", f"{rate:,.0f}", f"{tokens:,.0f}"]
        cells += [f"{100 * first['padding']:.0f} %", f"{loss:.3f}", faster("raykd", arm), faster(LIKE.get(arm), arm)]
        print("| " + " | ".join(cells) + " |")


# ----------------------------------------------------------------------------------------------- preparing


def prepare(folder: Path, settings: argparse.Namespace) -> None:
    """Rows, tokenizer and the model that every arm begins with."""
    import torch

    sys.path.insert(0, str(ROOT))
    from raykd.models.load import load_model
    from raykd.models.tokenizers import build_tokenizer, load_tokenizer
    from raykd.recipe.models import FromConfig, WordsTokenizer

    rows = {"words": words, "slots": slots, "instructions": instructions}[settings.task](settings)
    count = min(400, len(rows) // 10)
    for name, part in (("dev", rows[:count]), ("train", rows[count : count + settings.rows])):
        lines = [json.dumps({"id": str(i), "input": text, "target": target}) for i, (text, target) in enumerate(part)]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    tokenizer_folder = folder / "tokenizer"
    if settings.tokenizer:
        load_tokenizer(settings.tokenizer).save_pretrained(tokenizer_folder)
    else:
        texts = [part for row in rows for part in row]
        build_tokenizer(WordsTokenizer(kind="words"), texts, tokenizer_folder)
    tokenizer = load_tokenizer(tokenizer_folder)
    kind, size = MODELS[settings.task]
    torch.manual_seed(0)
    model = load_model(FromConfig(kind="config", model_type=kind, settings=size), tokenizer)
    model.save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    (folder / "task.json").write_text(json.dumps({"task": settings.task, "workers": settings.workers}))


def words(settings: argparse.Namespace) -> list[tuple[str, str]]:
    from raykd.data.tasks.pronunciation import cmudict

    return [(row["input"], row["target"]) for part in ("gold", "unlabelled") for row in cmudict(part)]


def slots(settings: argparse.Namespace) -> list[tuple[str, str]]:
    import random

    rows = []
    with gzip.open(settings.snips, "rt") as file:
        for line in map(json.loads, file):
            text = "".join(part["text"] for part in line["data"])
            named = [f"{part['entity']} = {part['text'].strip()} ;" for part in line["data"] if "entity" in part]
            rows.append((" ".join(text.split()), " ".join([line["intent"], ":", *named])))
    random.Random(0).shuffle(rows)
    return rows


def instructions(settings: argparse.Namespace) -> list[tuple[str, str]]:
    import random

    from raykd.models.tokenizers import load_tokenizer

    tokenizer, rows = load_tokenizer(settings.tokenizer), []
    for path in settings.instructions.split(","):
        for line in map(json.loads, Path(path).read_text().splitlines()):
            for instance in line.get("instances", [line]):  # self-instruct's seeds have instances
                prompt = " ".join(filter(None, [line["instruction"], instance.get("input")]))
                rows.append((f"User: {prompt}\nAssistant:", " " + str(instance.get("output") or "")))
    sizes = [[len(tokenizer(text).input_ids) for text in row] for row in rows]
    fits = [row for row, (prompt, target) in zip(rows, sizes, strict=True) if prompt < 400 and 1 < target < 300]
    random.Random(0).shuffle(fits)
    return fits


# -------------------------------------------------------------------------------------------------- arms


def run(arm: str, folder: Path) -> None:
    """Train one arm; the last line that is printed has its figures."""
    import torch

    torch.set_num_threads(THREADS)
    task = json.loads((folder / "task.json").read_text())
    at = Path(tempfile.mkdtemp(dir=folder))
    way = raykd if arm.startswith("raykd") else trl if arm.startswith("trl") else trainer
    way(arm, folder, at / "warm", task, WARM_STEPS)
    result = way(arm, folder, at, task, None)
    assert torch.get_num_threads() == THREADS
    print(json.dumps({**result, "model": str(at / "model")}))


def raykd(arm: str, folder: Path, at: Path, task: dict, steps: int | None) -> dict:
    sys.path.insert(0, str(ROOT))
    from raykd.data.prompts import PromptEncoder
    from raykd.data.sources import FileSource
    from raykd.recipe.models import Checkpoint
    from raykd.recipe.training import Training
    from raykd.training.job import MarkedSource, TrainingSpec
    from raykd.training.loop import train

    at.mkdir(exist_ok=True)
    budget = BUDGETS[task["task"]]
    if "," in arm:
        budget = budget * int(arm.split()[1]) // batch_rows(folder)
    settings = Training(
        learning_rate=RATE,
        epochs=None if steps else 1,
        max_steps=steps,
        batch_tokens=budget,
        warmup_ratio=WARMUP,
        weight_decay=DECAY,
        evaluate_every=10**6,
        max_input_tokens=1024,
        max_target_tokens=1024,
    )
    start = str(folder / "start")
    spec = TrainingSpec(
        name="raykd",
        model=Checkpoint(kind="checkpoint", path=start),
        tokenizer=start,
        training=settings,
        rows=MarkedSource(FileSource(str(folder / "train.jsonl")), "train"),
        dev=MarkedSource(FileSource(str(folder / "dev.jsonl")), "dev"),
        student=PromptEncoder(start, "{input}", encoder=task["task"] != "instructions"),
        folder=str(at),
        tokens=str(folder / "tokens"),
        seed=0,
        threads=THREADS,
    )
    result = train(spec, lambda metrics, checkpoint: None)
    stats = result["stats"]
    return {"steps": result["steps"], **{n: stats[n] for n in ("rows", "tokens", "seconds", "padding")}}


def encoded_rows(folder: Path) -> list[dict]:
    """The same token ids that raykd trains on."""
    sys.path.insert(0, str(ROOT))
    from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(folder / "tokenizer")
    sources = encode_inputs(tokenizer, [row["input"] for row in rows], encoder=True)
    targets = encode_targets(tokenizer, [row["target"] for row in rows])
    return [{"input_ids": s, "labels": t, "length": len(s) + len(t)} for s, t in zip(sources, targets, strict=True)]


def quiet(at: Path, steps: int | None) -> dict:
    """The settings of every trainer of a peer."""
    return {
        "output_dir": str(at / "out"),
        "num_train_epochs": 1,
        "max_steps": steps or -1,
        "learning_rate": RATE,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "warmup_steps": WARMUP,  # a share, below one
        "weight_decay": DECAY,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def batch_rows(folder: Path) -> int:
    """Rows of raykd's batches on average."""
    path = folder / "batch.json"
    return json.loads(path.read_text()) if path.exists() else 32


def trainer(arm: str, folder: Path, at: Path, task: dict, steps: int | None) -> dict:
    import transformers
    from datasets import Dataset

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "start")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "start")
    rows = encoded_rows(folder)
    best = {"per_device_train_batch_size": batch_rows(folder), "train_sampling_strategy": "group_by_length"}
    ways = {
        "trainer, best": {**best, "dataloader_num_workers": task["workers"]},
        "trainer, default": {"per_device_train_batch_size": 8},
        "mckd authors": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16},
    }
    settings = transformers.Seq2SeqTrainingArguments(
        length_column_name="length",
        remove_unused_columns=False,  # the lengths must reach the sampler, and not the model
        **quiet(at, steps),
        **ways[arm],
    )
    pad = transformers.DataCollatorForSeq2Seq(tokenizer, model)
    peer = transformers.Seq2SeqTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        data_collator=lambda features: pad([{k: v for k, v in f.items() if k != "length"} for f in features]),
    )
    seconds, padding = timed(peer, sum(row["length"] for row in rows), with_labels=True)
    model.save_pretrained(at / "model")
    tokens = sum(len(row["labels"]) for row in rows)
    return {
        "steps": peer.state.global_step,
        "rows": len(rows),
        "tokens": tokens,
        "seconds": seconds,
        "padding": padding,
    }


def timed(peer: Any, real: int, with_labels: bool) -> tuple[float, float]:
    """Seconds of a trainer's training, data included, set-up not; and the share of padding in an epoch.

    `real`: tokens of the rows without padding, those of the labels included where `with_labels`.
    """
    from transformers import TrainerCallback

    times, padded, collate = [], [], peer.data_collator

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    def counted(features: list[dict]) -> dict:
        batch = collate(features)
        padded.append(batch["input_ids"].numel() + (batch["labels"].numel() if with_labels else 0))
        return batch

    if not peer.args.dataloader_num_workers:  # a worker's count would not come back
        peer.data_collator = counted
    peer.add_callback(Clock())
    peer.train()
    return times[1] - times[0], 1 - real / sum(padded) if padded else float("nan")


def trl(arm: str, folder: Path, at: Path, task: dict, steps: int | None) -> dict:
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "start")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    packs = BUDGETS[task["task"]] // PACK
    ways = {
        "trl, packed": {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": packs},
        "trl, packed flat": {"packing": True, "per_device_train_batch_size": packs},
        "trl, grouped": {
            "per_device_train_batch_size": batch_rows(folder),
            "train_sampling_strategy": "group_by_length",
        },
        "trl, default": {"per_device_train_batch_size": 8},
    }
    settings = SFTConfig(
        max_length=PACK, completion_only_loss=True, gradient_checkpointing=False, **quiet(at, steps), **ways[arm]
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "start")
    data = Dataset.from_list([{"prompt": row["input"], "completion": row["target"]} for row in rows])
    peer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    seconds, padding = timed(peer, sum(map(len, peer.train_dataset["input_ids"])), with_labels=False)
    model.save_pretrained(at / "model")
    tokens = sum(label != -100 for labels in peer.train_dataset["labels"] for label in labels)
    return {
        "steps": peer.state.global_step,
        "rows": len(rows),
        "tokens": tokens,
        "seconds": seconds,
        "padding": padding,
    }


def dev_loss(model_folder: Path, folder: Path) -> float:
    """Cross entropy per target token of a saved model on the held-out rows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from raykd.losses.divergences import cross_entropy
    from raykd.losses.loss import make_loss
    from raykd.losses.tokens import TokenBatch
    from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
    from raykd.training import batches
    from raykd.training.student import Student

    task = json.loads((folder / "task.json").read_text())["task"]
    encoder = task != "instructions"
    family = AutoModelForSeq2SeqLM if encoder else AutoModelForCausalLM
    model = family.from_pretrained(model_folder).eval()
    tokenizer = load_tokenizer(folder / "tokenizer")
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    sources = encode_inputs(tokenizer, [row["input"] for row in rows], encoder)
    targets = encode_targets(tokenizer, [row["target"] for row in rows])
    total = torch.zeros(2, dtype=torch.float64)
    student = Student(model)
    with torch.no_grad():
        for at in range(0, len(rows), 32):
            rows_32 = slice(at, at + 32)
            tensors = batches.collate(sources[rows_32], targets[rows_32], tokenizer.pad_token_id, not encoder)
            batch = TokenBatch(tensors.pop("labels"))
            term = student(tensors, [make_loss(cross_entropy)], batch).terms["cross_entropy"]
            total += torch.tensor([term.sum.item(), term.denominator.item()])
    return (total[0] / total[1]).item()


if __name__ == "__main__":
    main()
