"""The page served on this machine: all of a run, step by step, and what a run under way adds.

Loopback only, GET only, and only under the name of this machine: a page of the web that has its own name point here
(DNS rebinding) gets nothing. No part of a request becomes a path: runs and evaluations are numbers, steps those that
there are, pictures are looked up by their hash.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sapo_vl.strict import Unreadable
from sapo_vl.viewing.collecting import evaluations_in_file, first_pictures, overview, title
from sapo_vl.viewing.evaluations import Pictures
from sapo_vl.viewing.facts import SUMMARY, read_facts
from sapo_vl.viewing.folders import METRICS, ROLLOUTS, find_folders, step_files
from sapo_vl.viewing.page import render
from sapo_vl.viewing.pictures import saved_image
from sapo_vl.viewing.rollouts import Group, index_row, read_groups
from sapo_vl.viewing.vocabulary import find_tokenizer, ids_of, token_texts

HOST = "127.0.0.1"
FOLLOW_S = 3  # between two looks at a run under way
SLICE_S = 0.5  # of indexing an answer may take
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class NotThere(Exception):
    """What was asked for does not exist."""


class Site:
    """What can be asked for; each answer is JSON but for the page."""

    def __init__(self, given: Sequence[Path], defaults: Mapping[str, Any] | None, *, follow: bool) -> None:
        self._runs, self._folders = find_folders(given)
        self._defaults, self._follow = defaults, follow
        self._index: dict[
            tuple[int, int], tuple[Any, list[Any], list[str]]
        ] = {}  # (run, step) -> state, rows, troubles
        self._pictures: dict[int, Pictures] = {}
        self._lock = Lock()
        self.answers = {
            "/api/state": self.state,
            "/api/overview": self.overview,
            "/api/index": self.index,
            "/api/step": self.step,
            "/api/search": self.search,
            "/api/image": self.image,
            "/api/items": self.items,
            "/api/pictures": self.pictures,
        }

    def page(self) -> str:
        data = self.overview({}) | {"served": True, "follow": FOLLOW_S if self._follow else 0, "state": self.state({})}
        data["evaluations"] = [{**e, "items": None} for e in self._evaluations]
        return render(data, title(self._runs, self._folders), served=True)

    def state(self, _: Mapping[str, str]) -> list[Any]:
        """What changes when a run writes: sizes and steps."""
        return [
            [_size(run.path / METRICS), _size(run.path / SUMMARY), max(step_files(run.path), default=0)]
            for run in self._runs
        ]

    def overview(self, _: Mapping[str, str]) -> dict[str, Any]:
        return overview(self._runs, self._defaults)

    def index(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Groups of the step `step`, or of the steps after `after`, as many as half a second allows."""
        run = self._run(asked)
        files = step_files(self._runs[run].path)
        if "step" in asked:
            rows, troubles = self._rows(run, _whole(asked, "step"), files)
            return {"rows": rows, "troubles": troubles}
        after = _whole(asked, "after")
        left = [step for step in files if step > after]
        found: dict[str, Any] = {"rows": [], "troubles": [], "after": after, "done": not left}
        end = time.monotonic() + SLICE_S
        for step in left:
            rows, troubles = self._rows(run, step, files)
            found["rows"] += rows
            found["troubles"] += troubles
            found["after"], found["done"] = step, step == left[-1]
            if time.monotonic() > end:
                break
        return found

    def step(self, asked: Mapping[str, str]) -> dict[str, Any]:
        run = self._run(asked)
        groups, troubles = self._groups(run, _whole(asked, "step"), step_files(self._runs[run].path))
        tokenizer = self._tokenizer(run)
        return {
            "groups": groups,
            "troubles": troubles,
            "texts": token_texts(tokenizer, ids_of(groups)) if tokenizer else {},
        }

    def search(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Keys of the groups whose prompt, gold, id or responses hold `text`, in the step `step` or in all."""
        run, wanted = self._run(asked), asked.get("text", "").casefold()
        files = step_files(self._runs[run].path)
        steps = [_whole(asked, "step")] if asked.get("step") else list(files)
        keys = [
            g["key"] for step in steps for g in self._groups(run, step, files, numbers=False)[0] if _holds(g, wanted)
        ]
        return {"keys": keys}

    def image(self, asked: Mapping[str, str]) -> dict[str, Any]:
        return {"image": saved_image(self._runs[self._run(asked)].path / ROLLOUTS, asked.get("name", ""))}

    def items(self, asked: Mapping[str, str]) -> dict[str, Any]:
        return {"items": self._evaluation(asked)["items"]}

    def pictures(self, asked: Mapping[str, str]) -> dict[str, Any]:
        item = {"row": _whole(asked, "row"), "prompt": asked.get("prompt", "")}
        benchmark = self._evaluation(asked)["benchmark"]
        same = [i for i, other in enumerate(self._evaluations) if other["benchmark"] == benchmark]
        same.sort(key=lambda i: i != _whole(asked, "n"))
        return {"pictures": first_pictures([self._opened(i) for i in same], item)}

    @cached_property
    def _evaluations(self) -> list[dict[str, Any]]:
        return evaluations_in_file(self._folders, None)[0]

    def _evaluation(self, asked: Mapping[str, str]) -> dict[str, Any]:
        n = _whole(asked, "n")
        if not 0 <= n < len(self._evaluations):
            raise NotThere(f"no evaluation {n}")
        return self._evaluations[n]

    def _opened(self, n: int) -> Pictures:
        evaluation = self._evaluation({"n": str(n)})
        with self._lock:
            if n not in self._pictures:
                self._pictures[n] = Pictures(evaluation, self._folders[n].path)
            return self._pictures[n]

    def _run(self, asked: Mapping[str, str]) -> int:
        run = _whole(asked, "run")
        if not 0 <= run < len(self._runs):
            raise NotThere(f"no run {run}")
        return run

    def _tokenizer(self, run: int) -> Any:
        try:
            return find_tokenizer(self._runs[run].path)
        except ValueError:  # ids are shown; the file's own page says why
            return None

    def _groups(
        self, run: int, step: int, files: Mapping[int, list[Path]], *, numbers: bool = True
    ) -> tuple[list[Group], list[str]]:
        if step not in files:
            raise NotThere(f"no rollouts of step {step}")
        return read_groups(files[step], self._group_sizes[run], numbers=numbers)

    def _rows(self, run: int, step: int, files: Mapping[int, list[Path]]) -> tuple[list[Any], list[str]]:
        """The index of a step, read again only where its files have changed."""
        state = [(p.stat().st_mtime_ns, p.stat().st_size) for p in files.get(step, [])]
        known = self._index.get((run, step))
        if known is None or known[0] != state:
            groups, troubles = self._groups(run, step, files, numbers=False)
            known = (state, [index_row(group) for group in groups], troubles)
            self._index[run, step] = known
        return known[1], known[2]

    @cached_property
    def _group_sizes(self) -> list[int | None]:
        return [read_facts(run.path, None)["group_size"] for run in self._runs]


class Handler(BaseHTTPRequestHandler):
    """Answers GET under the name of this machine, and nothing else."""

    server: Server

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self._send(403, "text/plain", f"this server answers to {HOST}:{port} only")
            return
        parts = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        try:
            if parts.path == "/":
                self._send(200, "text/html", self.server.site.page())
            elif parts.path in self.server.site.answers:
                answer = self.server.site.answers[parts.path](asked)
                self._send(200, "application/json", json.dumps(answer, allow_nan=False))
            else:
                self._send(404, "text/plain", "nothing here")
        except NotThere as error:
            self._send(404, "text/plain", str(error))
        except (Unreadable, OSError) as error:
            self._send(500, "text/plain", str(error))

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the reader went elsewhere

    def log_message(self, format: str, *args: Any) -> None:
        """A line for each request would hide the address."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        super().__init__((HOST, port), Handler)
        self.site = site


def serve(given: Sequence[Path], port: int, defaults: Mapping[str, Any] | None, *, follow: bool) -> None:
    """Until Ctrl-C or SIGTERM. Raises NothingToView, OSError where the port is taken."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Server(Site(given, defaults, follow=follow), port) as server:
        print(f"http://{HOST}:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _whole(asked: Mapping[str, str], name: str) -> int:
    text = asked.get(name, "")
    if not text.removeprefix("-").isdecimal() or len(text) > 12:
        raise NotThere(f"{name} must be a whole number, got {text[:40]!r}")
    return int(text)


def _holds(group: Group, wanted: str) -> bool:
    texts = [group["id"], group["prompt"], group["answer"], *(r["text"] for r in group["responses"])]
    return any(wanted in str(text or "").casefold() for text in texts)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
