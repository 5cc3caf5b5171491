"""Fetching pictures: only from hosts on the list, only from the address that was checked, every failure counted."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from recipe_helpers import encoded, lines, picture

from data_recipes import RECIPES, fetching
from data_recipes.fetching import NotFetched, Rules, fetch
from sapo_vl.commands.cli import main

PNG = encoded(picture(1))
BODIES = {"/a.png": PNG, "/text.png": b"no picture", "/cut.png": PNG[:-60], "/big.png": b"x" * 5000}


class Handler(BaseHTTPRequestHandler):
    """Serves BODIES, a redirect, and answers that lie about their length; counts what it was asked for."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/redirect.png":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        body = BODIES.get(self.path.partition("?")[0])
        self.send_response(404 if body is None else 200)
        if self.path.endswith("?unsaid"):  # ends with the connection
            self.end_headers()
        else:
            self.send_header("Content-Length", str(len(body or b"") + 9 * self.path.endswith("?lie")))
            self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def reason(url: str, folder: Path, rules: Rules) -> str:
    with pytest.raises(NotFetched) as error:
        fetch(url, folder, rules)
    return error.value.reason


def test_a_picture_is_stored_under_its_digest(server: str, tmp_path: Path) -> None:
    rules = Rules(hosts={server}, allow_private=True)
    name = fetch(f"http://{server}/a.png", tmp_path, rules)
    assert name == hashlib.sha256(PNG).hexdigest() + ".png"
    assert (tmp_path / name).read_bytes() == PNG
    assert fetch(f"http://{server}/a.png?unsaid", tmp_path, rules) == name
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/none.png", "status 404"), ("/redirect.png", "redirect"), ("/text.png", "image wrong type"),
        ("/cut.png", "image damaged"), ("/big.png", "too many bytes"), ("/big.png?unsaid", "too many bytes"),
        ("/a.png?lie", "connection broke"), ("/a b.png", "not a URL"),
    ],
)  # fmt: skip
def test_what_a_server_may_answer(path: str, why: str, server: str, tmp_path: Path) -> None:
    rules = Rules(hosts={server}, allow_private=True, max_bytes=4000)
    assert reason(f"http://{server}{path}", tmp_path, rules) == why
    assert "/a.png" not in Handler.asked and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://{server}/a.png", "not https"),
        ("https://{server}/a.png", "private address"),
        ("https://127.0.0.1/a.png", "host not on the list"),
        ("https://localhost/a.png", "private address"),
        ("https://0x7f000001/a.png", "private address"),
        ("https://[::1]/a.png", "private address"),
        ("https://[::ffff:10.0.0.1]/a.png", "private address"),
        ("https://169.254.169.254/latest/meta-data", "private address"),
        ("https://me:secret@localhost/a.png", "not a URL"),
        ("https://localhost.example.org/a.png", "host not on the list"),
        ("https://localhost:99999/a.png", "not a URL"),
        ("file:///etc/passwd", "not a URL"),
        ("ftp://localhost/a.png", "not a URL"),
        ("https:///a.png", "not a URL"),
        ("https://no-such-host.invalid/a.png", "host not found"),
    ],
)
def test_addresses_that_are_never_asked(url: str, why: str, server: str, tmp_path: Path) -> None:
    hosts = {server, "localhost", "0x7f000001", "::1", "::ffff:10.0.0.1", "169.254.169.254", "no-such-host.invalid"}
    assert reason(url.format(server=server), tmp_path, Rules(hosts=hosts)) == why
    assert Handler.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("127.0.0.1", False), ("0.0.0.0", False),
        ("100.64.0.1", False), ("169.254.1.1", False), ("224.0.0.1", False), ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:192.168.0.1", False), ("2002:7f00:1::", False), ("64:ff9b::7f00:1", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert fetching._is_public(address) is public


def test_a_server_that_drips_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TOTAL_S", 0.5)
    stop = threading.Event()

    class Dripping(Handler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not stop.wait(0.05):
                self.wfile.write(b"x")

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the client has hung up
                stop.set()

    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        host = f"127.0.0.1:{http.server_port}"
        why = reason(f"http://{host}/a.png", tmp_path, Rules(hosts={host}, allow_private=True))
        stop.set()
        http.shutdown()
        thread.join()
    assert why == "too slow"


def test_rows_with_urls_become_rows_with_files(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, gone = f"http://{server}/a.png", f"http://{server}/none.png"
    rows = [
        {"image": good, "question": "Left?", "answer": "1"},
        {"image": [good, good], "question": "Both?", "answer": "2"},
        {"image": gone, "question": "Gone?", "answer": "3"},
        {"image": gone, "question": "Again gone?", "answer": "4"},
        {"image": "https://elsewhere.example/a.png", "question": "Other host?", "answer": "5"},
        {"image": None, "question": "None?", "answer": "6"},
    ]
    source = lines(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "local"
    command = ["data", "fetch-images", source, "--out", str(out), "--hosts", server]
    assert main([*command, "--allow-private"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "6 rows, 3 pictures fetched, 3 not", "       2 status 404", "       1 host not on the list",
    ]  # fmt: skip
    assert sorted(Handler.asked) == ["/a.png", "/none.png"]  # each once, and nothing is tried again
    path = f"images/{hashlib.sha256(PNG).hexdigest()}.png"
    found = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [row["image"] for row in found] == [path, [path, path], gone, gone, rows[4]["image"], None]
    failed = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert [(f["row"], f["reason"]) for f in failed] == [
        (2, "status 404"), (3, "status 404"), (4, "host not on the list"),
    ]  # fmt: skip
    assert main([*command, "--allow-private"]) == 2 and "exists already" in capsys.readouterr().err
    manifest = RECIPES["columns"](
        tmp_path / "set",
        source=str(out / "rows.jsonl"),
        text_only=True,  # the last row has no picture
        test_rows=1,
        max_bad_share=0.9,
        check_golds=False,
        seed=4,
    )
    assert sum(manifest["notes"][s]["left_out"].get("image url", 0) for s in ("train", "test")) == 3
