"""The training loop against its peers: the same model, rows, optimizer and threads, in interleaved rounds.

    python benchmarks/training.py [--task words|slots|instructions] [--rows N] [--rounds N]
        [--snips FILE] [--instructions FILE --tokenizer FOLDER --trl-python PYTHON]

words: letters to phonemes (CMUdict), a T5 of the demo's size. slots: Snips utterances to their intent and slots, a
larger T5. instructions: a causal student of 17 million parameters, losses on answers only; TRL runs in a Python of
its own. Every arm sees every row once, in a process of its own; seconds are those of its training steps, data
included. dev loss is cross entropy per target token on the same held-out rows, by one program for all arms.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RATE, THREADS, WARMUP, DECAY = 0.002, 2, 0.1, 0.01
T5 = {"d_kv": 16, "num_heads": 8, "relative_attention_num_buckets": 64, "dropout_rate": 0.0}
MODELS = {
    "words": ("t5", {**T5, "d_model": 64, "d_ff": 192, "num_layers": 3, "num_decoder_layers": 2}),
    "slots": ("t5", {**T5, "d_model": 192, "d_ff": 512, "num_layers": 4, "num_decoder_layers": 4}),
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
ARMS = {
    "words": ["raykd", "trainer, best", "trainer, default", "mckd authors"],
    "slots": ["raykd", "trainer, best", "trainer, default", "mckd authors"],
    "instructions": ["raykd", "trl, packed", "trl, default"],
}


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--task", choices=list(MODELS), default="words")
    given.add_argument("--rows", type=int, default=16_000)
    given.add_argument("--rounds", type=int, default=3)
    given.add_argument("--snips")
    given.add_argument("--instructions")
    given.add_argument("--tokenizer")
    given.add_argument("--trl-python", default=sys.executable)
    given.add_argument("--arm")
    given.add_argument("--folder")
    settings = given.parse_args()
    if settings.arm:
        run(settings.arm, Path(settings.folder))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, settings)
        found: dict[str, list[dict]] = {arm: [] for arm in ARMS[settings.task]}
        for number in range(settings.rounds):
            for arm in reversed(list(found)) if number % 2 else list(found):
                program = settings.trl_python if arm.startswith("trl") else sys.executable
                command = [program, __file__, "--task", settings.task, "--arm", arm, "--folder", str(folder)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
                result = json.loads(done.stdout.strip().splitlines()[-1])
                result["dev_loss"] = dev_loss(Path(result["model"]), folder)
                found[arm].append(result)
                print(json.dumps({"arm": arm, **result}), file=sys.stderr, flush=True)
                (folder / "batch.json").exists() or save_batch(folder, found)
        table(found)


def save_batch(folder: Path, found: dict[str, list[dict]]) -> None:
    """Rows per batch of raykd, which the best peers are given too."""
    if found["raykd"]:
        (folder / "batch.json").write_text(json.dumps(round(found["raykd"][0]["rows_per_step"])))


def table(found: dict[str, list[dict]]) -> None:
    print("| arm | rows/s | target tokens/s | padding | dev loss | raykd is faster by |\n|---|---|---|---|---|---|")
    for arm, results in found.items():
        rates = [result["rows"] / result["seconds"] for result in results]
        tokens = statistics.median(result["tokens"] / result["seconds"] for result in results)
        mine = [result["rows"] / result["seconds"] for result in found["raykd"]]
        ratios = [own / rate for own, rate in zip(mine, rates, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if arm != "raykd" else ""
        loss, padding = statistics.median(r["dev_loss"] for r in results), results[0]["padding"]
        shown = "" if padding is None else f"{100 * padding:.0f} %"
        print(f"| {arm} | {statistics.median(rates):,.0f} | {tokens:,.0f} | {shown} | {loss:.3f} | {spread} |")


# ----------------------------------------------------------------------------------------------- preparing


def prepare(folder: Path, settings: argparse.Namespace) -> None:
    """Rows, tokenizer and the model that every arm begins with."""
    import torch

    sys.path.insert(0, str(ROOT))
    from raykd import models
    from raykd.recipe import FromConfig, WordsTokenizer

    rows = {"words": words, "slots": slots, "instructions": instructions}[settings.task](settings)
    held = min(400, len(rows) // 10)
    for name, part in (("dev", rows[:held]), ("train", rows[held : held + settings.rows])):
        lines = [json.dumps({"id": str(i), "input": text, "target": target}) for i, (text, target) in enumerate(part)]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    tokenizer_folder = folder / "tokenizer"
    if settings.tokenizer:
        models.load_tokenizer(settings.tokenizer).save_pretrained(tokenizer_folder)
    else:
        texts = [part for row in rows for part in row]
        models.build_tokenizer(WordsTokenizer(kind="words"), texts, tokenizer_folder)
    tokenizer = models.load_tokenizer(tokenizer_folder)
    kind, size = MODELS[settings.task]
    torch.manual_seed(0)
    model = models.load(FromConfig(kind="config", model_type=kind, settings=size), tokenizer)
    model.save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    (folder / "task.json").write_text(json.dumps({"task": settings.task, "budget": BUDGETS[settings.task]}))


def words(settings: argparse.Namespace) -> list[tuple[str, str]]:
    from raykd.tasks.pronunciation import cmudict

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

    from raykd import models

    tokenizer, rows = models.load_tokenizer(settings.tokenizer), []
    for path in settings.instructions.split(","):
        for line in map(json.loads, Path(path).read_text().splitlines()):
            prompt = " ".join(filter(None, [line.get("instruction"), line.get("input")]))
            rows.append((f"User: {prompt}\nAssistant:", " " + str(line.get("output") or line.get("response") or "")))
    fits = [
        r
        for r in rows
        if r[1].strip() and len(tokenizer(r[0]).input_ids) < 400 and len(tokenizer(r[1]).input_ids) < 300
    ]
    random.Random(0).shuffle(fits)
    return fits


# -------------------------------------------------------------------------------------------------- arms


def run(arm: str, folder: Path) -> None:
    """Train one arm; the last line printed says what it took."""
    import torch

    torch.set_num_threads(THREADS)
    task = json.loads((folder / "task.json").read_text())
    at = Path(tempfile.mkdtemp(dir=folder))
    if arm == "raykd":
        result = raykd(folder, at, task)
    elif arm.startswith("trl"):
        result = trl(folder, at, packed="packed" in arm)
    else:
        result = trainer(folder, at, arm)
    print(json.dumps({**result, "model": str(at / "model")}))


def raykd(folder: Path, at: Path, task: dict) -> dict:
    sys.path.insert(0, str(ROOT))
    from raykd import encoded, training
    from raykd.recipe import Checkpoint, Training

    settings = Training(
        learning_rate=RATE,
        epochs=1,
        batch_tokens=task["budget"],
        warmup_ratio=WARMUP,
        weight_decay=DECAY,
        evaluate_every=10**6,
        max_input_tokens=1024,
        max_target_tokens=1024,
    )
    start = str(folder / "start")
    job = training.Job(
        name="raykd",
        model=Checkpoint(kind="checkpoint", path=start),
        tokenizer=start,
        training=settings,
        source=encoded.Rows(str(folder / "train.jsonl")),
        dev=encoded.Rows(str(folder / "dev.jsonl")),
        student=encoded.Reading(start, "{input}", encoder=task["task"] != "instructions"),
        folder=str(at),
        tokens=str(at / "tokens"),
        marks=("train", "dev"),
        seed=0,
        threads=THREADS,
    )
    stats = training.train(job, lambda metrics, checkpoint: None)
    steps, stats = stats["steps"], stats["stats"]
    kept = {name: stats[name] for name in ("rows", "tokens", "seconds", "padding")}
    return {**kept, "rows_per_step": stats["rows"] / steps, "steps": steps}


def encoded_rows(folder: Path, encoder: bool) -> list[dict]:
    """The very ids that raykd trains on."""
    sys.path.insert(0, str(ROOT))
    from raykd import models

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    tokenizer = models.load_tokenizer(folder / "tokenizer")
    sources = models.encode_inputs(tokenizer, [row["input"] for row in rows], encoder)
    targets = models.encode_targets(tokenizer, [row["target"] for row in rows])
    return [{"input_ids": s, "labels": t, "length": len(s) + len(t)} for s, t in zip(sources, targets, strict=True)]


def trainer(folder: Path, at: Path, arm: str) -> dict:
    import torch
    import transformers
    from datasets import Dataset

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "start")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "start")
    rows = encoded_rows(folder, encoder=True)
    batch = json.loads((folder / "batch.json").read_text()) if (folder / "batch.json").exists() else 64
    ways = {
        "trainer, best": {"per_device_train_batch_size": batch, "train_sampling_strategy": "group_by_length"},
        "trainer, default": {"per_device_train_batch_size": 8},
        "mckd authors": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16},
    }
    settings = transformers.Seq2SeqTrainingArguments(
        output_dir=str(at / "out"),
        num_train_epochs=1,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
        use_cpu=True,
        length_column_name="length",
        dataloader_pin_memory=False,
        **ways[arm],
    )
    plain = transformers.DataCollatorForSeq2Seq(tokenizer, model)
    seen = {"padded": 0, "real": 0}

    def collate(features: list[dict]) -> dict:
        made = plain([{k: v for k, v in f.items() if k != "length"} for f in features])
        seen["padded"] += made["input_ids"].numel() + made["labels"].numel()
        seen["real"] += int(made["attention_mask"].sum()) + int((made["labels"] != -100).sum())
        return made

    # the length column must reach the sampler, and not the model
    settings.remove_unused_columns = False
    made = transformers.Seq2SeqTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(rows), data_collator=collate
    )
    begun = time.monotonic()
    made.train()
    seconds = time.monotonic() - begun
    model.save_pretrained(at / "model")
    tokens = sum(len(row["labels"]) for row in rows)
    assert torch.get_num_threads() == THREADS
    padding = 1 - seen["real"] / seen["padded"]
    return {
        "rows": len(rows),
        "tokens": tokens,
        "seconds": seconds,
        "padding": padding,
        "steps": made.state.global_step,
    }


def trl(folder: Path, at: Path, packed: bool) -> dict:
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "start")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    batch = json.loads((folder / "batch.json").read_text()) if (folder / "batch.json").exists() else 8
    ways = {"packing": True, "per_device_train_batch_size": 4} if packed else {"per_device_train_batch_size": 8}
    settings = SFTConfig(
        output_dir=str(at / "out"),
        num_train_epochs=1,
        learning_rate=RATE,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
        bf16=False,
        max_length=1024,
        completion_only_loss=True,
        gradient_checkpointing=False,
        seed=0,
        **ways,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "start")
    data = Dataset.from_list([{"prompt": row["input"], "completion": row["target"]} for row in rows])
    made = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    begun = time.monotonic()
    made.train()
    seconds = time.monotonic() - begun
    model.save_pretrained(at / "model")
    tokens = sum(len(tokenizer(row["target"], add_special_tokens=False).input_ids) + 1 for row in rows)
    result = {"rows": len(rows), "tokens": tokens, "seconds": seconds, "padding": None}
    return {**result, "steps": made.state.global_step, "raykd_batch": batch}


def dev_loss(model_folder: Path, folder: Path) -> float:
    """Cross entropy per target token of a saved model on the held-out rows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from raykd import batches, models
    from raykd.losses.tokens import TokenLoss
    from raykd.students import Student

    task = json.loads((folder / "task.json").read_text())["task"]
    encoder = task != "instructions"
    family = AutoModelForSeq2SeqLM if encoder else AutoModelForCausalLM
    model = family.from_pretrained(model_folder).eval()
    tokenizer = models.load_tokenizer(folder / "tokenizer")
    rows = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    sources = models.encode_inputs(tokenizer, [row["input"] for row in rows], encoder)
    targets = models.encode_targets(tokenizer, [row["target"] for row in rows])
    total = torch.zeros(2, dtype=torch.float64)
    student = Student(model)
    with torch.no_grad():
        for at in range(0, len(rows), 32):
            here = slice(at, at + 32)
            tensors = batches.collate(sources[here], targets[here], tokenizer.pad_token_id, not encoder)
            term = student(tensors, tensors.pop("labels"), [TokenLoss("cross_entropy")]).terms["cross_entropy"]
            total += torch.tensor([term.sum.item(), term.denominator.item()])
    return (total[0] / total[1]).item()


if __name__ == "__main__":
    main()
