"""The endpoint engine against a real `vllm serve`, and against a small server that misbehaves as told."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from conftest import word

from raykd.data import prompts
from raykd.data.examples import Example
from raykd.engines.engine import EngineConfig, Rejected, open_engine
from raykd.errors import EngineError
from raykd.recipe.data import FunctionRows
from raykd.recipe.generation import EndpointEngine, Sampling, TransformersEngine
from raykd.recipe.prompts import Chat, Shots

PROMPTS = [f"{word(i)} =>" for i in range(40)]
KEY = "sk-no-message-shows-this"
NAMED = "RAYKD_TEST_KEY"
STARTING = 240  # seconds that a server may take; a quiet machine needs some 40
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}=>"


def opened(url: str, sampling: Sampling | None = None, model: str = "tiny", chat: bool = False, **settings) -> Any:
    spec = EndpointEngine(kind="endpoint", url=url, **settings)
    return open_engine(
        EngineConfig(
            engine=spec,
            model=model,
            sampling=sampling or Sampling(max_tokens=8),
            seed=0,
            threads=1,
            special_tokens=not chat,
        )
    )


@contextmanager
def engine_of(*given, **settings) -> Iterator[Any]:
    engine = opened(*given, **settings)
    try:
        yield engine
    finally:
        engine.close()


def stopped(engine) -> bool:
    return not engine.thread.is_alive() and engine.loop.is_closed()


# --------------------------------------------------------------------------------------------- vllm serve


@pytest.fixture(scope="module")
def served(tiny_models, tmp_path_factory) -> Iterator[str]:
    """The address of a vLLM server of the tiny llama."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM has no build on this platform")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` by its module: the command of the CPU build asks for the version of a package named vllm
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_models["llama"])]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    command += ["--enforce-eager", "--dtype", "float32", "--max-num-seqs", "32", "--chat-template", TEMPLATE]
    settings = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    settings |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    log = tmp_path_factory.mktemp("served") / "log.txt"
    with log.open("w") as said:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=said, stderr=said, start_new_session=True
        )
    try:
        until = time.monotonic() + STARTING
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv(NAMED, KEY)


real = pytest.mark.timeout(STARTING + 60)


@real
def test_completions_are_those_of_the_model_itself(served, key, tiny_models):
    sampling = Sampling(max_tokens=8)
    spec = TransformersEngine(kind="transformers")
    config = EngineConfig(engine=spec, model=str(tiny_models["llama"]), sampling=sampling, seed=0, threads=1)
    reference: Any = open_engine(config)
    expected = reference.generate(PROMPTS)
    with engine_of(served, sampling, api_key_env=NAMED) as engine:
        found = engine.generate(PROMPTS)
    same = [i for i in range(40) if found[i][0].text == expected[i][0].text]
    assert len(same) >= 38  # random weights leave near ties, which the engines round their own way
    assert all(found[i][0].finish_reason == expected[i][0].finish_reason for i in same)
    assert engine.prompt_tokens == reference.prompt_tokens > 0
    assert abs(engine.output_tokens - reference.output_tokens) <= 8 * (40 - len(same))
    assert len(found[0][0].token_ids) == len(found[0][0].logprobs) == 0


@real
def test_a_chat_is_written_by_the_server(served, key):
    shots = Shots(rows=FunctionRows(kind="function", function="nowhere:rows"), count=1)
    prompt = Chat(kind="chat", system="a", template="b {input}", shots=shots)
    render = prompts.renderer(prompt, [Example("1", "c", "C")], endpoint=True)
    sampling = Sampling(max_tokens=8, n=8, temperature=1.0)  # a greedy one says the same to every prompt
    with engine_of(served, sampling, api_key_env=NAMED, chat=True) as engine:
        (chats,) = engine.generate(render(["d"]), range(8), [3])
    assert engine.prompt_tokens == len("a b c C b d =>".split())
    with engine_of(served, sampling, api_key_env=NAMED) as engine:
        (plain,) = engine.generate(["a b c C b d =>"], range(8), [3])
    assert [answer.text for answer in chats] == [answer.text for answer in plain]


@real
def test_samples_depend_on_their_seed_alone(served, key):
    with engine_of(served, Sampling(max_tokens=8, n=8, temperature=1.0), api_key_env=NAMED) as engine:
        several = engine.generate(PROMPTS[:2], range(8), [5, 2**31 - 3])
        assert [len(answers) for answers in several] == [8, 8] and len({a.text for a in several[0]}) > 4
        assert engine.output_tokens > 8 * 2 and engine.prompt_tokens < 8 * 8  # a prompt counts once
        alone = engine.generate([PROMPTS[7], PROMPTS[1]], range(5, 8), [9, 2**31 - 3])[1]
        assert [a.text for a in alone] == [a.text for a in several[1][5:]]


@real
def test_what_does_not_fit_is_rejected_and_the_rest_written(served, key):
    with engine_of(served, api_key_env=NAMED) as engine:
        long, tight, empty, good = engine.generate(["a " * 80, "a " * 60, "", "a b =>"])
    assert isinstance(long, Rejected) and "context length is 64" in long.reason
    assert tight == Rejected("cut at 4 tokens: prompt of 60 + max_tokens 8 > the model's context")
    assert isinstance(empty, Rejected) and len(good) == 1


@real
def test_a_wrong_model_or_key_ends_the_pass_in_a_line_without_the_key(served, key, monkeypatch):
    with engine_of(served, model="tinny", api_key_env=NAMED) as engine:
        with pytest.raises(EngineError) as error:
            engine.generate(PROMPTS)
    assert str(error.value).startswith(f"{served}: status 404: The model `tinny` does not exist")
    monkeypatch.setenv(NAMED, "sk-wrong")
    with engine_of(served, api_key_env=NAMED) as engine:
        with pytest.raises(EngineError) as error:
            engine.generate(PROMPTS)
    assert str(error.value) == f"{served}: status 401: Unauthorized"
    with engine_of(served) as engine, pytest.raises(EngineError, match="status 401"):
        engine.generate(PROMPTS)


# ------------------------------------------------------------------------------------------ one that misbehaves


class Fake(ThreadingHTTPServer):
    """A server that gives `answer(number of the request) -> (status, headers, body)` after `seconds`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer, seconds: float = 0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.seconds = answer, seconds
        self.lock = threading.Lock()
        self.asked: list[dict] = []  # the bodies
        self.keys: list[str] = []
        self.times: list[float] = []
        self.now = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Fake

    def do_POST(self):
        fake = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            number = len(fake.asked)
            fake.asked.append(body)
            fake.keys.append(self.headers["Authorization"])
            fake.times.append(time.monotonic())
            fake.now += 1
            fake.most = max(fake.most, fake.now)
        time.sleep(fake.seconds)
        with fake.lock:
            fake.now -= 1
        status, headers, said = fake.answer(number)
        raw = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


def good(texts=("A",), reason="stop", written=1):
    choices = [{"index": i, "text": text, "finish_reason": reason} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 2, "completion_tokens": written, "total_tokens": 2 + written}
    return 200, {}, {"id": "1", "object": "text_completion", "choices": choices, "usage": usage}


def bad(status: int, message: str = "busy", **headers):
    return status, headers, {"error": {"message": message}}


@pytest.fixture
def fake():
    made: list[Fake] = []

    def make(*answers, seconds: float = 0.0) -> Fake:
        """One that gives these answers in turn, and the last of them from then on."""
        made.append(Fake(lambda number: answers[min(number, len(answers) - 1)], seconds))
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


def test_what_passes_is_tried_again_when_the_server_says(fake):
    server = fake(bad(429, **{"Retry-After": "1"}), bad(500, **{"Retry-After": "0.1"}), good())
    with engine_of(server.url) as engine:
        ((answer,),) = engine.generate(["a"])
    first, second, third = server.times
    assert answer.text == "A" and 1 <= second - first < 2 and 0.1 <= third - second < 0.7
    assert (engine.prompt_tokens, engine.output_tokens) == (2, 1)


@pytest.mark.parametrize("busy, said", [(503, "status 503: busy"), (429, "status 429: busy")])
def test_retries_end(fake, busy, said):
    server = fake(bad(busy, **{"Retry-After": "0.01"}))
    with engine_of(server.url, retries=2) as engine, pytest.raises(EngineError) as error:
        engine.generate(["a"])
    assert str(error.value) == f"{server.url}: {said} (after 2 retries)" and len(server.asked) == 3


def test_no_connection_and_no_answer_are_one_line(fake):
    slow = fake(good(), seconds=1)
    with engine_of(slow.url, retries=0, timeout_seconds=0.1) as engine:
        with pytest.raises(EngineError, match=rf"^{slow.url}: ReadTimeout \(after 0 retries\)$"):
            engine.generate(["a"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with engine_of(gone, retries=0) as engine:
        with pytest.raises(EngineError, match=rf"^{gone}: .*connect.* \(after 0 retries\)$"):
            engine.generate(["a"])


def test_requests_are_paced_and_retries_with_them(fake):
    server = fake(bad(500, **{"Retry-After": "0.01"}), good())
    with engine_of(server.url, requests_per_minute=600) as engine:
        engine.generate(["a"] * 6)
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 6 and min(gaps) > 0.08 and 0.59 < sum(gaps) < 1.5


def test_as_many_at_once_as_the_recipe_says_whoever_asks(fake):
    server = fake(good(), seconds=0.05)
    with engine_of(server.url, concurrency=5) as engine:
        calls = [threading.Thread(target=engine.generate, args=(["a"] * 20,)) for _ in range(2)]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
    assert len(server.asked) == 40 and server.most == 5


def test_a_batch_that_fails_leaves_nothing_pending(fake):
    server = fake(bad(403, "no"), good(), seconds=0.1)
    with engine_of(server.url, concurrency=2) as engine:
        with pytest.raises(EngineError, match="status 403: no"):
            engine.generate(["a"] * 50)
        asked = len(server.asked)
        time.sleep(0.3)
        assert len(server.asked) == asked <= 4
        assert len(engine.generate(["b"] * 4)) == 4  # and it goes on


def test_closing_ends_what_is_under_way_and_twice_is_once(fake):
    server = fake(good(), seconds=1)
    engine = opened(server.url, concurrency=1)
    errors = []

    def ask():
        try:
            engine.generate(["a"] * 50)
        except EngineError as error:
            errors.append(str(error))

    call = threading.Thread(target=ask)
    call.start()
    while not server.asked:
        time.sleep(0.01)
    engine.close()
    call.join(5)
    engine.close()
    assert stopped(engine) and errors == ["engine: it was closed before the endpoint answered"]
    with pytest.raises(EngineError, match="engine: it is closed"):
        engine.generate(["a"])
    assert len(server.asked) == 1


@pytest.fixture
def interruptible():
    """SIGINT is KeyboardInterrupt, also where the tests run in the background of a shell, which ignores it there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_wait_gives_up_what_was_asked(fake, interruptible):
    server = fake(good(), seconds=0.2)
    with engine_of(server.url, concurrency=1) as engine:
        threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            engine.generate(["a"] * 50)
        asked = len(server.asked)
        time.sleep(0.5)
        assert len(server.asked) == asked < 10


def test_what_is_sent(fake, key):
    server = fake(good("AB"))
    sampling = Sampling(max_tokens=8, n=2, temperature=0.5, top_k=3, options={"stop": ["x"], "logit_bias": {"5": -1}})
    with engine_of(server.url, sampling, api_key_env=NAMED) as engine:
        engine.generate(["a"], range(4, 6), [7])
    sent = {"model": "tiny", "prompt": "a", "temperature": 0.5, "top_p": 1.0, "n": 2, "seed": 11, "max_tokens": 8}
    assert server.asked == [{**sent, "top_k": 3, "stop": ["x"], "logit_bias": {"5": -1}}]
    assert server.keys == [f"Bearer {KEY}"]
    sampling = Sampling(max_tokens=8, options={"max_completion_tokens": 9})
    with engine_of(server.url, sampling) as engine:
        engine.generate(["a"])
    assert server.asked[1] == {"model": "tiny", "prompt": "a", "temperature": 0, "max_completion_tokens": 9}
    assert server.keys[1] == "Bearer none"


@pytest.mark.parametrize(
    "answer, reason",
    [
        (good("A"), "1 answers, 2 were asked for"),
        (good(()), "0 answers, 2 were asked for"),
        (good("AB", "content_filter"), "finish_reason content_filter"),
        (good((None, "B")), "an answer without text"),
        (good("AB", "length", 15), "cut at 15 tokens: prompt of 2 "),
        (bad(400, "not\nthis one"), "^not this one$"),
        (bad(413, "too large"), "^too large$"),
    ],
)
def test_less_than_was_requested_is_rejected(fake, answer, reason):
    server = fake(answer, good("AB", "length", 16))
    with engine_of(server.url, Sampling(max_tokens=8, n=2, temperature=1.0), concurrency=1) as engine:
        rejected, (a, b) = engine.generate(["a", "b"], range(2))
    with pytest.raises(EngineError, match=reason):
        raise EngineError(rejected.reason)
    assert (a.text, b.text, a.finish_reason) == ("A", "B", "length")


@pytest.mark.parametrize(
    "answer, said",
    [
        ((200, {"Content-Type": "text/html"}, "<html>\n<p>Sign in"), "no answer in OpenAI's protocol: <html> <p>Sign"),
        ((200, {}, '{"choices": [{"te'), "no answer in OpenAI's protocol"),
        ((502, {"Content-Type": "text/html"}, "<h1>Bad\nGateway"), "status 502: <h1>Bad Gateway (after 0 retries)"),
        (bad(401, f"no such key: {KEY}"), "status 401: no such key: <key>"),
    ],
)
def test_what_is_no_answer_ends_the_pass_in_one_line(fake, key, answer, said):
    server = fake(answer)
    with engine_of(server.url, retries=0, api_key_env=NAMED) as engine, pytest.raises(EngineError) as error:
        engine.generate(["a"])
    assert str(error.value).startswith(f"{server.url}: {said}") and "\n" not in str(error.value)


def test_rows_do_not_follow_a_redirect(fake):
    other = fake(good())
    server = fake((307, {"Location": f"{other.url}/completions"}, ""))
    with engine_of(server.url) as engine, pytest.raises(EngineError, match="status 307: Temporary Redirect"):
        engine.generate(["a"])
    assert not other.asked


def test_what_cannot_be_asked_is_refused_at_once(monkeypatch):
    url = "http://127.0.0.1:9/v1"
    monkeypatch.delenv(NAMED, raising=False)
    with pytest.raises(EngineError, match=f"^engine.api_key_env: the environment has no {NAMED}$"):
        opened(url, api_key_env=NAMED)
    for wrong in ("", "two words", f"{KEY}\n", "schlüssel"):
        monkeypatch.setenv(NAMED, wrong)
        with pytest.raises(EngineError, match=f"^engine.api_key_env: {NAMED}: expected a key") as error:
            opened(url, api_key_env=NAMED)
        assert not wrong or wrong not in str(error.value)
    with pytest.raises(EngineError, match="^sampling.options: stream: "):
        opened(url, Sampling(options={"stream": True}))
    with pytest.raises(EngineError, match="^engine.url: .*port"):
        opened("http://[::/v1")
    with engine_of(url) as engine, pytest.raises(EngineError, match="cannot read given ones"):
        engine.score(["a"], ["A"])
    assert stopped(engine)
