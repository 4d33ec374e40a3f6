"""Encoder-decoder labelling against transformers at batch 8 in file order, which is how the published systems do it.

    python benchmarks/encoder_decoder.py [prompts] [threads]

A T5 of 4+4 layers x 256 with random weights, prompts of 4-60 words, 24 new tokens, greedy. Both arms run in this
process, in turns, three times; rows per second from the first prompt to the last pseudo-target, tokenizing included.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from raykd.engines.engine import EngineConfig, open_engine
from raykd.models.load import load_model
from raykd.models.tokenizers import build_tokenizer, encode_inputs, load_tokenizer
from raykd.recipe.generation import Sampling, TextPayload, TransformersEngine
from raykd.recipe.models import Checkpoint, FromConfig, WordsTokenizer

SETTINGS = {"d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 8}
TOKENS = 24


def main() -> None:
    count = int(sys.argv[1]) if sys.argv[1:] else 2048
    threads = int(sys.argv[2]) if sys.argv[2:] else 2
    torch.set_num_threads(threads)
    dice = random.Random(0)
    words = [f"w{number}" for number in range(8000)]
    prompts = [" ".join(dice.choices(words, k=dice.randint(4, 60))) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        build(folder, words)
        sampling, payload = Sampling(max_tokens=TOKENS), TextPayload(kind="text", logprobs=False)
        engine = open_engine(
            EngineConfig(
                engine=TransformersEngine(kind="transformers"),
                model=folder,
                sampling=sampling,
                seed=0,
                threads=threads,
                payload=payload,
            )
        )
        tokenizer = load_tokenizer(folder)
        model = load_model(Checkpoint(kind="checkpoint", path=folder), tokenizer).eval()
        naive(tokenizer, model, prompts[:64])
        engine.generate(prompts[:512])
        rates: dict[str, list[float]] = {"batch 8, file order": [], "raykd": []}
        for _ in range(3):
            rate, expected = timed(lambda: naive(tokenizer, model, prompts), count)
            rates["batch 8, file order"].append(rate)
            rate, texts = timed(lambda: [samples[0].text for samples in engine.generate(prompts)], count)
            rates["raykd"].append(rate)
    medians = {arm: statistics.median(of_arm) for arm, of_arm in rates.items()}
    print("| arm | rows/s (median of 3) | times |\n|---|---|---|")
    for arm, rate in medians.items():
        print(f"| {arm} | {rate:.1f} | {rate / medians['batch 8, file order']:.1f} |")
    same = sum(a == b for a, b in zip(texts, expected, strict=True))
    print(f"\nequal texts: {same} of {count}; {threads} threads; token budget: {engine.writing.tokens} tokens")


def build(folder: str, words: list[str]) -> None:
    build_tokenizer(WordsTokenizer(kind="words"), [" ".join(words)], Path(folder))
    torch.manual_seed(0)
    spec = FromConfig(kind="config", model_type="t5", settings={**SETTINGS, "dropout_rate": 0.0})
    load_model(spec, load_tokenizer(folder)).save_pretrained(folder)


def naive(tokenizer, model, prompts: list[str]) -> list[str]:
    texts = []
    for at in range(0, len(prompts), 8):
        rows = encode_inputs(tokenizer, prompts[at : at + 8], encoder=True)
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        with torch.inference_mode():
            outputs = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=TOKENS
            )
        texts += [text.strip() for text in tokenizer.batch_decode(outputs, skip_special_tokens=True)]
    return texts


def timed(work, count: int) -> tuple[float, list[str]]:
    begun = time.perf_counter()
    result = work()
    return count / (time.perf_counter() - begun), result


if __name__ == "__main__":
    main()
