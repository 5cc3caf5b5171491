"""The server: what it answers, step by step, and to whom."""

import contextlib
import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from helpers_launch import run_python, start_python
from viewing_folders import HOSTILE, make_evaluation, make_run

from sapo_vl.viewing.serving import HOST, Server, Site


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("served")
    return make_run(root / "run", [2, 4, 6]), make_evaluation(root / "eval" / "shapes", {"a": [1.0], "b": [0.0]})


@pytest.fixture(scope="module")
def server(folders: tuple[Path, Path]) -> Iterator[Server]:
    with Server(Site(folders, None, follow=True), 0) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], str]:
    port = server.server_address[1]
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"{HOST}:{port}" if host is None else host)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def value(server: Server, path: str, **asked: Any) -> Any:
    status, _, text = ask(server, f"{path}?{urlencode(asked)}")
    assert status == 200, text
    return json.loads(text)


def test_it_listens_on_loopback_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_comes_without_rollouts_and_may_ask_its_own_server(server: Server) -> None:
    status, headers, page = ask(server, "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert "connect-src &#39;self&#39;" in page and '"served":true' in page and '"groups":' not in page
    assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1", "127.0.0.1:1"])
def test_another_name_gets_nothing(server: Server, host: str) -> None:
    status, _, text = ask(server, "/", host=host)
    assert status == 403 and len(text) < 100


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_only_get_is_answered(server: Server, method: str) -> None:
    assert ask(server, "/", method)[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/../config.yaml", "/config.yaml", "/..%2f..%2fetc/passwd", "//etc/passwd", "/api/step?run=0&step=3",
        "/api/step?run=1&step=2",
        "/api/step?run=-1&step=2", "/api/step?run=0&step=../2", "/api/step?run=0",
        "/api/items?n=7", "/api/pictures?n=-1&row=0",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(server: Server, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_no_path_leaves_the_folder(server: Server, folders: tuple[Path, Path]) -> None:
    secret = folders[0] / "rollouts" / "aaaaaaaaaaaa.png"
    secret.write_bytes(next((folders[0] / "rollouts" / "images").glob("*.png")).read_bytes())
    for name in ("../aaaaaaaaaaaa", "..%2faaaaaaaaaaaa", str(secret.with_suffix(""))):
        assert value(server, "/api/image", run=0, name=name) == {"image": None}
    known = next((folders[0] / "rollouts" / "images").glob("*.png")).stem
    assert value(server, "/api/image", run=0, name=known)["image"]["w"] == 64


def test_steps_come_whole_and_the_index_bit_by_bit(server: Server) -> None:
    step = value(server, "/api/step", run=0, step=4)
    assert len(step["groups"]) == 4 and "<think>" in step["texts"].values()
    after, rows = -1, []
    for _ in range(4):
        part = value(server, "/api/index", run=0, after=after)
        rows, after = rows + part["rows"], part["after"]
        if part["done"]:
            break
    assert [row[1] for row in rows] == [2] * 4 + [4] * 4 + [6] * 4
    assert value(server, "/api/index", run=0, step=4)["rows"] == rows[4:8]


def test_text_is_found_in_one_step_or_in_all(server: Server) -> None:
    everywhere = value(server, "/api/search", run=0, text=HOSTILE.upper().casefold())["keys"]
    assert [key.split(".")[0] for key in everywhere] == ["2", "4", "6"]
    assert value(server, "/api/search", run=0, text="window.hit", step=4)["keys"] == everywhere[1:2]


def test_a_step_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1], prompts=2)
    site = Site([run], None, follow=True)
    before = site.index({"run": "0", "after": "-1"})["rows"]
    state = site.state({})
    make_run(run, [1, 2], prompts=4)
    after = site.index({"run": "0", "after": "-1"})["rows"]
    assert (len(before), len(after)) == (2, 8) and site.state({}) != state


def test_items_and_their_pictures(server: Server) -> None:
    items = value(server, "/api/items", n=0)["items"]
    assert [(item["id"], item["score"]) for item in items] == [("a", 1.0), ("b", 0.0)]
    assert value(server, "/api/pictures", n=0, row=0) == {"pictures": []}


@pytest.mark.slow
def test_the_command_serves_a_run_under_way_until_it_is_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1], prompts=2)
    process = start_python("-m", "sapo_vl", "view", run, "--serve", "0", "--follow")
    assert process.stdout is not None
    try:
        said = ""
        while not (found := re.search(r"^http://127\.0\.0\.1:([0-9]+)/ ", said, re.MULTILINE)):
            line = process.stdout.readline()
            assert line, f"it ended before it told an address: {said}"
            said += line
        port = int(found[1])

        def state() -> Any:
            with urlopen(f"http://{HOST}:{port}/api/state", timeout=60) as answer:
                return json.load(answer)

        with urlopen(f"http://{HOST}:{port}/", timeout=60) as answer:
            page = answer.read().decode()
        assert '"follow":3' in page and '"saved_steps":[1]' in page and '"steps","1"' in page
        before = state()
        make_run(run, [1, 2], prompts=2)
        assert state() != before and state()[0][2] == 2
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_follow_without_a_server_is_refused(tmp_path: Path) -> None:
    done = run_python("-m", "sapo_vl", "view", make_run(tmp_path / "run", [1]), "--follow", check=False)
    assert done.returncode == 2 and "--follow needs --serve PORT" in done.stdout
