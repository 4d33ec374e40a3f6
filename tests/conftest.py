"""What tests share: tiny models, rows, and one Ray."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # tests import Ray before connect can say so
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
os.environ.pop("RAY_ADDRESS", None)

ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = str(ROOT / "tests")  # for functions that recipes of tests name
LETTERS = "abcdefgh"
RECIPE = """
name: r
output: {output}
method: {{kind: distill}}
data: {{unlabelled: {{kind: jsonl, path: rows.jsonl}}, max_bad_rows: {bad}}}
teachers: {{main: {{model: {{kind: checkpoint, path: t}}}}}}
student: {{model: {{kind: checkpoint, path: s}}, training: {{learning_rate: 0.1, max_steps: 1}}}}
"""
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
}
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def word(number: int) -> str:
    """A word of two to five letters, blank-separated; different numbers below 4,000 give different words."""
    letters = [LETTERS[number % 8], LETTERS[number // 8 % 8]]
    for place in range(number // 64 % 4):
        letters.append(LETTERS[(number * 7 + place * 3 + number // 256) % 8])
    return " ".join([*letters, LETTERS[number // 256 % 8], LETTERS[number // 512 % 8]])


def stored_tables(store, columns: list[str]) -> list:
    """Columns of every shard of a store."""
    from raykd.store.read import read_rows

    return [read_rows(store, shard, columns) for shard in store.shards()]


def pairs(count: int, start: int = 0) -> list[dict]:
    """Rows whose target is the input in capitals: any model can learn a little of it."""
    found = [word(i) for i in range(start, start + count)]
    return [{"id": f"r{start + i}", "input": text, "target": text.upper()} for i, text in enumerate(found)]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def shared_tokenizer(tmp_path_factory) -> Path:
    """The words tokenizer of LETTERS in both cases, and the separator."""
    from raykd.models.tokenizers import build_tokenizer
    from raykd.recipe.models import WordsTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(WordsTokenizer(kind="words", extra=["=>"]), [" ".join(LETTERS + LETTERS.upper())], folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory, shared_tokenizer) -> dict[str, Path]:
    """Folders of a tiny t5 and a tiny llama with random weights."""
    import torch

    from raykd.models.load import load_model
    from raykd.models.tokenizers import load_tokenizer
    from raykd.recipe.models import FromConfig

    found = {}
    for kind, settings in (("t5", T5), ("llama", LLAMA)):
        torch.manual_seed(0)
        tokenizer = load_tokenizer(shared_tokenizer)
        found[kind] = tmp_path_factory.mktemp(kind)
        load_model(FromConfig(kind="config", model_type=kind, settings=settings), tokenizer).save_pretrained(
            found[kind]
        )
        tokenizer.save_pretrained(found[kind])
    return found


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray for all tests that need one."""
    from raykd.cluster import connect
    from raykd.recipe.cluster import Cluster

    with connect.ray_cluster(Cluster(), ROOT / "build" / "test-logs", verbose=False):
        yield


@pytest.fixture
def bucket(monkeypatch):
    """An S3-compatible server of this machine, and the environment of those who use it."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    environment |= {"AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # whose servers are gone
    files = s3fs.S3FileSystem()
    files.mkdir("place")
    yield files
    files.rm("place", recursive=True)  # servers of one process keep the same files
    server.stop()


def raykd(*arguments: str, timeout: float = 800, **options):
    """The command line of the checkout, as a finished process."""
    import subprocess

    command = [sys.executable, "-m", "raykd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout, **options)
