"""A judge behind an OpenAI-compatible endpoint that does what a test tells it, and keeps what it was asked."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image
from scoring_helpers import group

from sapo_vl.scoring.scorer import ScoringConfig
from sapo_vl.types import RolloutGroup

SECTION = re.compile(r"<(question|reference|answer)-([0-9a-f]{16})>\n(.*?)\n</\1-\2>", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """One request: its body, headers, and the texts that stand between the marks."""

    body: dict[str, Any]
    headers: dict[str, str]
    texts: dict[str, str]
    marks: set[str]
    images: tuple[Image.Image, ...] = ()  # in the order in which they came, all before the text


@dataclass(frozen=True)
class Reply:
    """`content` is the message of a chat completion, or the whole body if the status is not 200."""

    content: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)  # what else the message says, or in place of it
    ended: str = "stop"


def verdict(right: bool) -> Reply:
    return Reply(json.dumps({"verdict": "correct" if right else "incorrect"}))


# The right answers of rewards/judging/canaries.py, and what the tests take for right.
RIGHT = {"twelve apples", "It is Canberra", "36 cm^2", "It is dark green.", "a dozen", "crimson"}
RIGHT |= {"the dark green one", "three circles"}


def honest(asked: Asked) -> Reply:
    return verdict(asked.texts["answer"] in RIGHT)


def parts(content: Any) -> tuple[str, tuple[Image.Image, ...]]:
    """The text of a message and its pictures, as a server that fetches nothing reads them."""
    if isinstance(content, str):
        return content, ()
    *shown, last = content
    images = []
    for part in shown:
        assert set(part) == {"type", "image_url"} and part["type"] == "image_url" and set(part["image_url"]) == {"url"}
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("PNG",))
        image.load()
        images.append(image)
    assert set(last) == {"type", "text"} and last["type"] == "text"
    return last["text"], tuple(images)


class FakeJudge:
    def __init__(self, port: int = 0) -> None:
        self.behave: Callable[[Asked], Reply] = honest
        self.asked: list[Asked] = []
        self.at_once, self.peak = 0, 0
        self.released = threading.Event()  # ends every hang
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                judge.handle(self)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        text, images = parts(body["messages"][-1]["content"])
        found = SECTION.findall(text)
        asked = Asked(body, dict(http.headers), {f[0]: f[2] for f in found}, {f[1] for f in found}, images)
        with self._lock:
            self.asked.append(asked)
            self.at_once += 1
            self.peak = max(self.peak, self.at_once)
        try:
            reply = self.behave(asked)
        finally:
            with self._lock:
                self.at_once -= 1
        content = reply.content
        if reply.status == 200:
            message = {"role": "assistant", "content": content} | reply.message
            content = json.dumps({"choices": [{"message": message, "finish_reason": reply.ended}]})
        try:
            http.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(content.encode()))}.items():
                http.send_header(name, value)
            http.end_headers()
            http.wfile.write(content.encode())
        except OSError:  # whoever asked has gone
            return

    def hang(self, _: Asked) -> Reply:
        self.released.wait(60)
        return verdict(True)

    def hold_until(self, number: int, seconds: float) -> Callable[[Asked], Reply]:
        """Keep a request until so many are there at once, or for so long."""

        def behave(asked: Asked) -> Reply:
            end = time.monotonic() + seconds
            while self.peak < number and time.monotonic() < end:
                time.sleep(0.005)
            return honest(asked)

        return behave

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def fake_judge() -> Iterator[FakeJudge]:
    server = FakeJudge()
    try:
        yield server
    finally:
        server.close()


def in_turn(*replies: Reply) -> Callable[[Asked], Reply]:
    """The replies one after the other, the last one for ever."""
    rest = list(replies)
    return lambda _: rest.pop(0) if len(rest) > 1 else rest[0]


class Quota:
    """Lets so many requests through in every window of `seconds`, and refuses the others until the next one."""

    def __init__(self, number: int, seconds: int, status: int = 429) -> None:
        self.refused = 0
        self._number, self._seconds, self._status = number, seconds, status
        self._left, self._end = 0, 0.0
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Reply:
        with self._lock:
            if time.monotonic() >= self._end:
                self._left, self._end = self._number, time.monotonic() + self._seconds
            if self._left:
                self._left -= 1
                return honest(asked)
            self.refused += 1
        return Reply("slow down", self._status, {"Retry-After": str(self._seconds)})


def params(url: str, cache: Path, **more: Any) -> dict[str, Any]:
    return {"url": url, "model": "m", "rule": "word", "cache": str(cache), "pause_s": 0.05, "timeout_s": 5} | more


def scoring(judge: dict[str, Any], **more: Any) -> ScoringConfig:
    settings = {"combine": {"accuracy": 1.0}, "by_task": {"*": "judge"}, "params": {"judge": judge}, "workers": 1}
    return ScoringConfig.model_validate(settings | more)


def answers(*texts: str, gold: str = "red", images: tuple[Image.Image, ...] = ()) -> list[RolloutGroup]:
    turns = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]},)
    written = [f"<think> hm </think> <answer> {t} </answer>" for t in texts]
    return [group(written, answer=gold, messages=turns, images=images)]
