"""docs/own_data.md as written: rows, an endpoint, and a student that is used."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from conftest import ROOT, write_rows

PAGE = (ROOT / "docs/own_data.md").read_text()
RECIPE = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)[0]
COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)[0].splitlines()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0]
KEY = "planted-0d1e5f"
WORDS = {"PlayMusic": "play some jazz", "BookRestaurant": "book a table", "GetWeather": "will it rain"}
LAST = ["today", "tonight", "now", "soon", "please", "again", "for me", "in Rome", "at six", "outside"]


class Endpoint(BaseHTTPRequestHandler):
    """Chat completions by the first word of the last turn; some hold more than the intent."""

    requests: list[dict] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.requests.append({"text": text, "key": self.headers["Authorization"], **body})
        intent = next(name for name, words in WORDS.items() if words.split()[0] in text)
        content = f"The intent is {intent}." if "in Rome" in text and body["temperature"] == 0 else intent
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        sent = json.dumps({**completion, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_) -> None:
        """Nothing."""


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def small_bert(folder: Path) -> Path:
    """A tiny encoder with random weights, that knows the words."""
    from transformers import BertConfig, BertModel

    from raykd.models.tokenizers import build_tokenizer, load_tokenizer
    from raykd.recipe.models import WordsTokenizer

    texts = [f"{words} {last}" for words in WORDS.values() for last in LAST]
    build_tokenizer(WordsTokenizer(kind="words"), texts, folder)
    tokenizer = load_tokenizer(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.timeout(1200)
def test_the_page_as_written(tmp_path, endpoint):
    inputs = [(f"{words} {last}", name) for name, words in WORDS.items() for last in LAST]
    write_rows(tmp_path / "rows.jsonl", [{"text": f"{text} {n}"} for n in LAST for text, _ in inputs[:24]])
    write_rows(
        tmp_path / "shots.jsonl", [{"text": text, "label": name} for text, name in inputs if "at six" not in text]
    )
    write_rows(tmp_path / "test.jsonl", [{"text": text, "label": name} for text, name in inputs])
    model = small_bert(tmp_path / "model")
    text = RECIPE.replace("https://api.example.com/v1", endpoint).replace("/models/MiniLM", str(model))
    recipe = yaml.safe_load(text)
    recipe["teachers"]["main"]["engine"]["requests_per_minute"] = 60_000
    recipe["student"]["training"] |= {"learning_rate": 0.02, "epochs": 3, "evaluate_every": 10, "batch_tokens": 128}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MY_KEY": KEY, "PYTHONPATH": ""}
    for command in COMMANDS:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert KEY not in done.stdout + done.stderr
        if " label " in command:
            assert " => PlayMusic" in done.stdout
            assert re.search(r"[1-9]\d* of the first \d+ pseudo-targets are not of the format labels", done.stdout)

    requests = list(Endpoint.requests)
    assert {request["key"] for request in requests} == {f"Bearer {KEY}"}
    first = [request["text"] for request in requests if request["temperature"] == 0]
    assert len(first) == len(set(first)) == 240 + 30  # the first run's are not requested again
    messages = [request["messages"] for request in requests]
    assert all(len(turns) == 18 for turns in messages)  # the system's, eight examples of two turns, the input
    new = [request for request in requests if request["text"] not in dict(inputs)]  # no examples themselves
    most_similar = [request["messages"][-3]["content"] for request in new]  # it comes last
    assert all(shot.split()[0] in request["text"] for shot, request in zip(most_similar, new, strict=True))

    run = tmp_path / "runs/own"
    report = json.loads((run / "report.json").read_text())
    assert report["totals"]["endpoint_rows"] == len(requests) - 80  # the first run: fifty inputs and the test rows
    assert report["totals"]["endpoint_cost"] == pytest.approx((100 * 0.15 + 2 * 0.60) * (len(requests) - 80) / 1e6)
    selected = next(s["stats"] for s in report["stages"] if s["stage"] == "teacher/chosen")
    assert selected["retried"] > 0 and selected["invalid"] == selected["dropped"] == 0
    assert report["arms"]["mckd"]["exact_match"] > 50
    (run / "teacher/labels/manifest.json").unlink()  # as if it was killed after the last pseudo-target
    again = subprocess.run(shlex.split(COMMANDS[-1]), cwd=tmp_path, env=environment, capture_output=True, timeout=300)
    assert again.returncode == 0 and Endpoint.requests == requests
    later = json.loads((run / "report.json").read_text())["totals"]
    assert all(later[name] == report["totals"][name] for name in ("endpoint_rows", "endpoint_cost"))
    for file in (tmp_path / "runs").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    served = subprocess.run(
        [sys.executable, "-c", PYTHON.replace('classify("', 'print(classify("').replace('jazz")', 'jazz"))')],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300},
    )
    assert served.returncode == 0 and "PlayMusic" in served.stdout, served.stdout + served.stderr
