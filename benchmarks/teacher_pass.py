"""The teacher pass against the bare engine: rows per second on the same prompts, in one run, with the same threads.

    python benchmarks/teacher_pass.py --model MODEL --prompts PROMPTS.jsonl [--chat] [--samples 8 --top-k 8] [...]

Each arm is a process of its own. The arms take turns, `--rounds` times, because a machine's speed drifts.

    bare      vllm.LLM.generate on all prompts at once, warm, from the call to its end
    raykd     `raykd label`, from the first shard that landed to the last, the first one's rows not counted
    ray_llm   ray.data.llm (one sample only), from its first batch to its last, the first one's rows not counted
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]


def main() -> None:
    options = parse()
    if options.arm:
        print("RESULT " + json.dumps(globals()[options.arm](options)), flush=True)
        return
    arms = ["bare", "raykd"] if options.samples > 1 or options.skip_ray_llm else ["bare", "raykd", "ray_llm"]
    results: dict[str, list[dict]] = {arm: [] for arm in arms}
    for number in range(options.rounds):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            results[arm].append(measure(arm))
            print(f"{number} {arm}: " + json.dumps(results[arm][-1]), flush=True)
    medians = {arm: statistics.median(r["rows_per_second"] for r in of_arm) for arm, of_arm in results.items()}
    print(
        f"\n{options.rows} prompts, n={options.samples}, top-k {options.top_k}, "
        f"{options.threads} threads, {options.model}"
    )
    print("| arm | rows/s (median) | of bare |\n|---|---|---|")
    for arm, rate in medians.items():
        print(f"| {arm} | {rate:.1f} | {rate / medians['bare']:.2f} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--prompts", required=True, help="JSONL of {input}")
    parser.add_argument("--template", default="{input}")
    parser.add_argument("--chat", action="store_true", help="the template is a user's turn")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-ray-llm", action="store_true")
    parser.add_argument("--arm", choices=["bare", "raykd", "ray_llm"], help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arm: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        sys.exit(f"{arm} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(results[0].removeprefix("RESULT "))


def arguments(options: argparse.Namespace) -> dict:
    return {"enforce_eager": True, "max_num_seqs": options.max_num_seqs, "dtype": options.dtype}


def inputs(options: argparse.Namespace) -> list[str]:
    with open(options.prompts, encoding="utf-8") as file:
        return [json.loads(line)["input"] for _, line in zip(range(options.rows), file, strict=False)]


def rendered(options: argparse.Namespace) -> tuple[list[str], list[list[int]]]:
    """Prompts, and their token ids as raykd encodes them."""
    sys.path.insert(0, str(ROOT))
    from raykd.data import prompts
    from raykd.models.tokenizers import encode_inputs, load_tokenizer
    from raykd.recipe.prompts import Chat

    tokenizer = load_tokenizer(options.model)
    prompt = Chat(kind="chat", template=options.template) if options.chat else options.template
    texts = prompts.renderer(prompt, (), tokenizer)(inputs(options))
    return texts, encode_inputs(tokenizer, texts, encoder=False, special_tokens=not options.chat)


def environment(options: argparse.Namespace) -> None:
    import os

    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(options.threads),
        VLLM_CPU_KVCACHE_SPACE="1",
        TORCHDYNAMO_DISABLE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
    )


def bare(options: argparse.Namespace) -> dict:
    environment(options)
    from vllm import LLM, SamplingParams

    llm = LLM(options.model, disable_log_stats=True, **arguments(options))
    parameters = SamplingParams(
        n=options.samples,
        temperature=1.0 if options.samples > 1 else 0.0,
        max_tokens=options.max_tokens,
        logprobs=options.top_k,
        flat_logprobs=True,
    )
    _, ids = rendered(options)
    requests = [{"prompt_token_ids": row} for row in ids]
    llm.generate(requests[:64], parameters, use_tqdm=False)  # warm
    begun = time.time()
    outputs = llm.generate(requests, parameters, use_tqdm=False)
    seconds = time.time() - begun
    tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
    return result(len(requests), tokens, seconds)


def raykd(options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        rows.write_text("".join(json.dumps({"input": text}) + "\n" for text in inputs(options)))
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tree(options, folder, rows)))
        subprocess.run([sys.executable, "-m", "raykd", "label", str(recipe)], check=True, cwd=ROOT)
        stats = json.loads((Path(folder) / "pass/teacher/labels/manifest.json").read_text())["stats"]
        shards = sorted(Path(folder).glob("stores/*/shards/*.parquet"), key=lambda path: path.stat().st_mtime)
        seconds = shards[-1].stat().st_mtime - shards[0].stat().st_mtime
        first = pq.read_metadata(shards[0]).num_rows // options.samples
    return result(stats["new_rows"] - first, stats["output_tokens"], seconds)


def tree(options: argparse.Namespace, folder: str, rows: Path) -> dict:
    sampling = {"max_tokens": options.max_tokens, "n": options.samples}
    payload = {"kind": "top_k", "k": options.top_k} if options.top_k else {"kind": "text"}
    teacher = {
        "model": {"kind": "checkpoint", "path": options.model},
        "prompt": {"kind": "chat", "template": options.template} if options.chat else options.template,
        "engine": {"kind": "vllm", "arguments": arguments(options)},
        "passes": {"pseudo_targets": {**sampling, "temperature": 1.0} if options.samples > 1 else sampling},
        "payload": payload,
        "shard_rows": options.shard_rows,
    }
    return {
        "name": "pass",
        "output": folder,
        "method": {"kind": "distill"},
        "data": {"unlabelled": {"kind": "jsonl", "path": str(rows)}},
        "tokenizer": {"kind": "words"},
        "teachers": {"main": teacher},
        "student": {
            "model": {"kind": "config", "model_type": "t5"},
            "training": {"learning_rate": 0.001, "max_steps": 1},
        },
        "cluster": {"teacher": {"threads": options.threads}},
    }


def ray_llm(options: argparse.Namespace) -> dict:
    environment(options)
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    config = vLLMEngineProcessorConfig(
        model_source=options.model,
        engine_kwargs=arguments(options),
        batch_size=64,
        concurrency=1,
        log_engine_metrics=False,
        placement_group_config={"bundles": [{"CPU": 1}]},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=True,
    )
    sampling = {"max_tokens": options.max_tokens, "temperature": 0.0, "logprobs": options.top_k}
    processor = build_processor(
        config,
        preprocess=lambda row: {"tokenized_prompt": row["ids"], "prompt": row["text"], "sampling_params": sampling},
        postprocess=lambda row: {
            "text": row["generated_text"],
            "tokens": row["num_generated_tokens"],
            "at": time.time(),
        },
    )
    texts, ids = rendered(options)
    rows = [{"text": text, "ids": row} for text, row in zip(texts, ids, strict=True)]
    outputs = processor(ray.data.from_items(rows)).take_all()
    # it does not say when its engine began: time runs from its first batch to its last, without the first one's rows
    times = sorted(row["at"] for row in outputs)
    first = sum(at - times[0] < 0.5 for at in times)
    ray.shutdown()
    return result(len(outputs) - first, int(sum(row["tokens"] for row in outputs)), times[-1] - times[first - 1])


def result(rows: int, tokens: int, seconds: float) -> dict:
    return {"rows": rows, "tokens": tokens, "seconds": round(seconds, 2), "rows_per_second": round(rows / seconds, 2)}


if __name__ == "__main__":
    main()
