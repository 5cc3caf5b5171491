"""A stand-in for vLLM's server whose behaviour a test chooses: the routes of v0_32_http.py, without a model.

The real one is in test_vllm_server.py. This one is for what the real one does only by accident.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

# What a server does with a request to generate: changes the answer, or returns what to send instead of it.
Fault = Callable[["Exchange"], "Reply | None"]
Reply = tuple[int, bytes]  # status and body; status 0 closes the connection without a word


class Exchange:
    """One request to generate: its body, the answer that is about to be sent, and the server."""

    def __init__(self, server: FakeServer, body: dict[str, Any], answer: dict[str, Any], number: int) -> None:
        self.server, self.body, self.answer, self.number = server, body, answer, number


class FakeServer:
    """Listens on a free port of loopback. Expands images as the tiny models do: a token for 16 x 16 pixels.

    Every response is token 100 + `mark`, so that a test sees who gave it, and another that the request's seed decides.
    """

    def __init__(self, image_token_id: int, mark: int, port: int = 0, host: str = "127.0.0.1") -> None:
        self.image_token_id, self.mark, self.host = image_token_id, mark, host
        self.fault: Fault | None = None
        self.settings = {
            "dtype": "float32", "logprobs_mode": "processed_logprobs", "max_model_len": 10_000, "vocab_size": 300,
            "image_size": {},
        }  # fmt: skip
        self.version = "0.32.0"
        self.absent: set[str] = set()  # routes that are not there
        self.broken: dict[str, Reply] = {}  # routes that reply this
        self.hung: set[str] = set()  # routes that never answer
        self.label = "default"
        self.folder = ""  # whose weights it has
        self.base = ""  # which model it says it was started from
        self.labels: list[str] = []  # all that it was given
        self.paused = False
        self.asked: list[dict[str, Any]] = []  # bodies of all requests to generate
        self.answered: list[str] = []  # names of those whose answer was sent
        self.calls: list[str] = []  # all other routes, in order, with methods of workers by their name
        self.loaded: list[dict[str, Tensor]] = []
        self._lock = threading.Lock()
        self.let_go = threading.Event()  # ends what hangs
        self._http: ThreadingHTTPServer | None = None
        self.start(port)
        assert self._http is not None
        self.port = int(self._http.server_address[1])
        self.url = f"http://{host}:{self.port}"

    def start(self, port: int) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                outer.serve(self)

            def do_POST(self) -> None:
                outer.serve(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is what some tests are about."""

        self._http = Server((self.host, port), Handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on, as a process that died."""
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.shutdown()
            http.server_close()

    def restart(self) -> None:
        """As a new process with the weights of its start."""
        self.stop()
        self.label, self.folder, self.paused = "default", "", False
        self.start(self.port)

    def restart_later(self, seconds: float = 1.0) -> None:
        threading.Timer(seconds, self.restart).start()

    def close(self) -> None:
        self.let_go.set()
        self.stop()

    def wait(self, seconds: float = 600) -> None:
        """Hangs until the test is over."""
        self.let_go.wait(seconds)

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        length = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(length) or b"{}") if length else {}
        status, out = self.reply(path, body)
        if status == 0:
            handler.close_connection = True
            return
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(out)))
        handler.end_headers()
        handler.wfile.write(out)

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        name = body.get("method", path)
        if name in self.hung:
            self.wait()
            return 0, b""
        if path in self.absent:
            return 404, b'{"detail":"Not Found"}'
        if name in self.broken:
            return self.broken[name]
        if path == "/inference/v1/generate":
            return self.generate(body) if body else (400, b"empty")
        with self._lock:
            self.calls.append(name)
            return 200, json.dumps(self.control(path, name, body)).encode()

    def control(self, path: str, name: str, body: dict[str, Any]) -> Any:
        if path == "/version":
            return {"version": self.version}
        if path == "/weight_info":
            return {"weight_version": self.label}
        if path == "/update_weight_version":
            self.label = body["new_version"]
            self.labels.append(self.label)
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
        if name == "sapo_settings":
            return {"results": [self.settings]}
        if name == "sapo_base":
            return {"results": [self.base]}
        if name == "sapo_load_adapters" and body["kwargs"]["base"] != self.base:
            return {"results": ["another model"]}
        if name in ("sapo_load_weights", "sapo_load_adapters"):
            assert self.paused
            self.folder = body["kwargs"]["folder"]
            files = sorted(Path(body["kwargs"]["folder"]).glob("*.safetensors"))
            self.loaded.append({k: v for path in files for k, v in load_file(path).items()})
            assert int(body["kwargs"]["tensors"]) == len(self.loaded[-1])
            return {"results": [""]}
        if name == "sapo_has":
            return {"results": ["" if self.folder == body["kwargs"]["folder"] else f"it has {self.folder!r}"]}
        if name == "sapo_repack_cpu":
            return {"results": ["1"]}
        return {"success": True}

    def generate(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.asked.append(body)
            number = len(self.asked)
        n = body["sampling_params"]["n"]
        answer = {
            "request_id": f"generate-tokens-{body['request_id']}",
            "prompt_token_ids": self.expand(body),
            "choices": [self.choice(i, body["sampling_params"]["seed"] + i) for i in range(n)],
        }
        exchange = Exchange(self, body, answer, number)
        instead = self.fault(exchange) if self.fault else None
        if instead is not None:
            return instead
        self.answered.append(body["request_id"])
        return 200, json.dumps(answer).encode()

    def choice(self, index: int, seed: int) -> dict[str, Any]:
        ids = [100 + self.mark, 20 + seed % 50]
        return {
            "index": index,
            "finish_reason": "length",
            "token_ids": ids,
            "logprobs": {"content": [{"token_id": t, "logprob": -1.5, "rank": 1} for t in ids]},
            "weight_versions": [{"version": self.label, "start": 0, "end": len(ids)}],
        }

    def expand(self, body: dict[str, Any]) -> list[int]:
        sizes = iter([(i.width // 16) * (i.height // 16) for i in images(body)])
        return [t for i in body["token_ids"] for t in [i] * (next(sizes) if i == self.image_token_id else 1)]


def images(body: dict[str, Any]) -> list[Image.Image]:
    """Those of a request, decoded."""
    return [
        Image.open(io.BytesIO(base64.b64decode(part["url"].removeprefix("data:image/png;base64,"))))
        for part in body.get("content_parts", [])
    ]


def always(reply: Reply) -> Fault:
    return lambda _: reply


def at_first(count: int, fault: Fault) -> Fault:
    """The fault for the first `count` requests, none afterwards."""
    return lambda e: fault(e) if e.number <= count else None


def hang(exchange: Exchange) -> Reply:
    """No answer for as long as the test lasts."""
    exchange.server.wait()
    return 0, b""


def die(exchange: Exchange) -> Reply:
    """Nobody listens from now on, and this request is not answered."""
    threading.Thread(target=exchange.server.stop, daemon=True).start()
    time.sleep(0.1)
    return 0, b""


def wrong_prompt(exchange: Exchange) -> None:
    exchange.answer["prompt_token_ids"] = [*exchange.answer["prompt_token_ids"][:-1], 3]


def another_request(exchange: Exchange) -> None:
    exchange.answer["request_id"] += "0"


def no_logprobs(exchange: Exchange) -> None:
    for choice in exchange.answer["choices"]:
        choice["logprobs"] = None


def missing_logprob(exchange: Exchange) -> None:
    exchange.answer["choices"][0]["logprobs"]["content"][0]["logprob"] = -9999.0


def other_logprobs(exchange: Exchange) -> None:
    exchange.answer["choices"][0]["logprobs"]["content"][0]["token_id"] = 9


def same_sample_twice(exchange: Exchange) -> None:
    exchange.answer["choices"][1]["index"] = 0


def one_sample_short(exchange: Exchange) -> None:
    exchange.answer["choices"].pop()


def label(text: str | None) -> Fault:
    """Answers as if sampled from other weights; None: from weights without a name."""

    def fault(exchange: Exchange) -> None:
        for choice in exchange.answer["choices"]:
            choice["weight_versions"] = [{"version": text, "start": 0, "end": 2}] if text is not None else None

    return fault


def garbage(seed: int) -> Fault:
    """Bytes that are no JSON, JSON that is no answer, an answer that is cut off; each in turn."""
    noise = np.random.default_rng(seed).integers(0, 256, 200, dtype=np.uint8).tobytes()

    def fault(exchange: Exchange) -> Reply:
        whole = json.dumps(exchange.answer).encode()
        odd = [noise, b"[]", b"[" * 100_000, whole[:-20], b'{"request_id": 1, "choices": {}}', b""]
        return 200, odd[exchange.number % len(odd)]

    return fault
