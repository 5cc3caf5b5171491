"""The page as a file: what it holds of the folders, what it leaves out, and what it must not do."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from viewing_folders import HOSTILE, make_evaluation, make_run

from sapo_vl.commands.viewing import what_it_holds
from sapo_vl.record.sampling import coarse_to_fine, spread
from sapo_vl.record.tokens import tokens_path
from sapo_vl.strict import Unreadable
from sapo_vl.viewing.collecting import write_page
from sapo_vl.viewing.folders import NothingToView, find_folders, short_names, step_files
from sapo_vl.viewing.metrics import MAX_POINTS, read_columns
from sapo_vl.viewing.rollouts import index_row, read_groups
from sapo_vl.viewing.sampling import MAX_TEXT, sample_rollouts


def page_data(page: str) -> Any:
    """The data block, found as a parser of HTML does: up to the first closing tag."""
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)
    return json.loads(block)


def rows_of(run: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in run["index"]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    notices = {3: ["entropy_collapse"], 9: ["entropy_collapse"]}
    return make_run(tmp_path_factory.mktemp("runs") / "first", [4, 8, 12, 16], notices=notices)


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("pages") / "page.html"
    write_page([run], out, {"seed": 0, "steps": 1000, "optim": {"lr": 1e-6}, "model": {"path": ""}})
    return out.read_text()


def test_all_rollouts_are_in_the_page_with_their_texts_images_and_tokens(run: Path, page: str) -> None:
    data = page_data(page)
    (shown,) = data["runs"]
    lines = [json.loads(line) for path in sorted((run / "rollouts").glob("*.jsonl")) for line in path.open()]
    held = [r for group in shown["groups"] for r in group["responses"]]
    assert sorted((r["text"], r["reward"], r["advantage"] and round(r["advantage"], 3)) for r in held) == sorted(
        (line["response"], line["reward"], line["advantage"] and round(line["advantage"], 3)) for line in lines
    )
    assert shown["sample"]["whole"] and shown["sample"]["responses"] == 4 * 4 * 4
    for name in {line["images"][0] for line in lines}:
        kind, stored = shown["images"][name]["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(stored) == (run / "rollouts" / "images" / f"{name}.png").read_bytes()
    ids = np.frombuffer(base64.b64decode(shown["groups"][0]["responses"][0]["tokens"]["ids"]), "<i4")
    assert [shown["texts"][str(i)] for i in ids][:1] == ["<think>"]


def test_index_tells_mean_spread_dead_and_truncated_groups(page: str) -> None:
    data = page_data(page)
    rows = rows_of(data["runs"][0], data["index_names"])
    dead = [row for row in rows if row["dead"]]
    assert dead and {row["id"][:9] for row in dead} >= {"compare-1"}
    assert all(row["mean"] == 0.5 and row["spread"] == 0 for row in dead if row["id"].startswith("compare-1"))
    assert {row["id"][:8] for row in rows if row["truncated"]} == {"ground-2"}
    group = {
        "key": "1.0.0", "step": 1, "id": "a", "task": "t",
        "responses": [
            {"reward": r, "advantage": a, "finish": "stop", "score_status": s}
            for r, a, s in [(0.0, -1.0, "scored"), (1.0, 1.0, "scored"), (None, None, "timeout")]
        ],
    }  # fmt: skip
    assert index_row(group) == ["1.0.0", 1, "a", "t", 3, [0.0, 1.0, None], 0.5, 0.5, 0, 0, 1, 0]


def test_model_text_cannot_end_a_block_or_become_a_tag(page: str) -> None:
    assert HOSTILE not in page and "<img src=x" not in page
    texts = [r["text"] for group in page_data(page)["runs"][0]["groups"] for r in group["responses"]]
    assert HOSTILE in texts
    assert page.count("</script") == 3  # data, library, ours


def test_page_asks_for_nothing_and_runs_no_script_but_its_own(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    allowed = policy[1].replace("&#39;", "'")
    assert "default-src 'none'" in allowed and "connect-src 'none'" in allowed and "unsafe" not in allowed
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert len(digests) == 2 and all(f"'sha256-{digest}'" in allowed for digest in digests)
    assert not re.search(r"<(?:link|iframe|img|script src)|@import|url\(\s*['\"]?http", page.split('id="data"')[0])


def test_title_of_a_folder_with_a_hostile_name_is_escaped(run: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "<b onclick=x>"
    shutil.copytree(run, hostile)
    write_page([hostile], tmp_path / "p.html", None)
    page = (tmp_path / "p.html").read_text()
    assert "<b onclick" not in page and "&lt;b onclick=x&gt;" in page


def test_overview_has_settings_notices_and_accuracy(run: Path, page: str) -> None:
    (shown,) = page_data(page)["runs"]
    assert ["optim.lr", "0.0001", "1e-06"] in shown["settings"] and ["steps", "16", "1000"] in shown["settings"]
    assert not [row for row in shown["settings"] if row[0] in ("seed", "model.path")]
    assert shown["notices"] == ["entropy_collapse"] and shown["notices_by_step"] == {"entropy_collapse": [3, 9]}
    assert shown["accuracy"]["final"]["greedy"]["mean"] == 0.6 and shown["path"] == str(run.resolve())


def test_columns_merge_lines_keep_intervals_and_say_what_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "phase": "train", "a": 1.0, "h/hist": [1, 2]}\n'
        '{"step": 2, "phase": "train", "a": NaN}\n'
        '{"step": 1, "phase": "train", "a": 3.0, "b": 1}\n'
        '{"step": 0, "phase": "eval", "e": 0.5, "e/ci95": [0.4, 0.6]}\n{"step": 3, "pha'
    )
    found = read_columns(tmp_path)
    train = found["phases"]["train"]
    assert train["steps"] == [1, 2] and train["series"] == {"a": [3.0, None], "b": [1, None]}
    assert train["counts"] == {"h/hist": [[1, 2], None]} and found["unread"] == 1
    assert found["phases"]["eval"]["intervals"] == {"e": [[0.4, 0.6]]}
    (tmp_path / "metrics.jsonl").write_text('{"step": "x", "phase": "train"}\n')
    with pytest.raises(Unreadable, match=r"metrics\.jsonl:1 .*step is 'x'"):
        read_columns(tmp_path)


def test_long_runs_keep_the_last_step(tmp_path: Path) -> None:
    n = 2 * MAX_POINTS + 2
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step":{i},"phase":"train","a":{i}}}\n' for i in range(n)))
    train = read_columns(tmp_path)["phases"]["train"]
    assert train["every"] == 3 and train["steps"][:2] == [0, 3] and train["steps"][-1] == n - 1
    assert len(train["steps"]) <= MAX_POINTS + 1


def test_a_sample_is_stated_spread_over_the_run_and_within_its_budget(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", range(1, 101), prompts=8, tokens=False)
    budget = 120_000
    found = sample_rollouts(run, 4, budget)
    sample = found["sample"]
    assert not sample["whole"] and sample["responses_saved"] == 100 * 8 * 4 and sample["steps_saved"] == 100
    assert sample["responses"] == sum(len(g["responses"]) for g in found["groups"]) > 0
    assert {1, 100} <= {*sample["steps"]} and max(np.diff(sample["steps"])) <= 10
    assert 0.4 * budget < len(json.dumps(found["groups"])) + len(json.dumps(found["images"])) < 1.3 * budget


def test_spread_takes_both_ends() -> None:
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread([1, 2], 5) == [1, 2] and spread([1, 2, 3], 1) == [1] and spread([], 3) == []
    assert coarse_to_fine(6) == [0, 5, 2, 3, 1, 4] and coarse_to_fine(1) == [0] and coarse_to_fine(0) == []


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1], prompts=1, group=2, ranks=1, tokens=False)
    path = run / "rollouts" / "step_000001.rank0.jsonl"
    lines = [json.loads(line) for line in path.open()]
    lines[0]["response"] = "x" * (MAX_TEXT + 7)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = sample_rollouts(run, 2, 10**7)
    assert found["sample"]["cut"] == 1
    assert found["groups"][0]["responses"][0]["text"].endswith("x [... 7 more characters, not in this file]")


def test_groups_of_one_problem_twice_in_a_row_are_kept_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1], prompts=1, group=4, ranks=1, tokens=False)
    files = step_files(run)[1]
    assert [len(g["responses"]) for g in read_groups(files, 2)[0]] == [2, 2]
    assert [g["key"] for g in read_groups(files, 2)[0]] == ["1.0.0", "1.0.2"]


def test_a_damaged_token_file_costs_the_tokens_and_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1], ranks=1)
    path = tokens_path(step_files(run)[1][0])
    path.write_bytes(path.read_bytes()[:-5])
    groups, troubles = read_groups(step_files(run)[1], 4)
    assert groups and not any("tokens" in r for g in groups for r in g["responses"])
    assert len(troubles) == 1 and str(path) in troubles[0]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1], ranks=1, tokens=False)
    path = step_files(run)[1][0]
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(Unreadable, match=rf"{path.name}:17 "):
        read_groups([path])


def test_image_names_are_hashes_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1], prompts=1, ranks=1, tokens=False)
    path = step_files(run)[1][0]
    (run / "rollouts" / "secret.png").write_bytes(next((run / "rollouts" / "images").glob("*.png")).read_bytes())
    path.write_text(re.sub(r'"images": \["[0-9a-f]+"\]', '"images": ["../secret"]', path.read_text()))
    assert sample_rollouts(run, 4, 10**6)["images"] == {"../secret": None}


def test_evaluations_put_what_changed_first(tmp_path: Path) -> None:
    ids = [f"item-{i}" for i in range(400)]
    before = make_evaluation(tmp_path / "a" / "shapes", {id: [float(i % 2)] for i, id in enumerate(ids)})
    after = make_evaluation(
        tmp_path / "b" / "shapes", {id: [float(i % 2 if i % 40 else not i % 2)] for i, id in enumerate(ids)}
    )
    write_page([before, after], tmp_path / "p.html", None, limit_mb=0.2)
    first, second = page_data((tmp_path / "p.html").read_text())["evaluations"]
    held = {item["id"]: item["score"] for item in first["items"]}
    assert {f"item-{i}" for i in range(0, 400, 40)} <= held.keys()
    assert first["left_out"] == second["left_out"] == 400 - len(held) > 0
    changed = [i["id"] for i in second["items"] if held[i["id"]] != i["score"]]
    assert changed == [f"item-{i}" for i in range(0, 400, 40)]
    assert first["items"][0]["responses"][0]["text"] == HOSTILE and first["name"] != second["name"]


def test_folders_are_told_apart_and_an_empty_one_is_refused(run: Path, tmp_path: Path) -> None:
    assert short_names([Path("/x/a/s0"), Path("/x/b/s0"), Path("/x/b/s1")]) == ["a/s0", "b/s0", "b/s1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingToView, match="empty has no metrics"):
        find_folders([run, tmp_path / "empty"])
    with pytest.raises(NothingToView, match="is no folder"):
        find_folders([tmp_path / "missing"])
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "eval.json").write_text("{}")
    with pytest.raises(NothingToView, match=r"held_out/eval.json. A page is made of evaluations on benchmarks"):
        find_folders([tmp_path / "held_out"])


@pytest.mark.parametrize(
    ("held", "saved", "items", "left_out", "told"),
    [
        (8, 8, 0, 0, "all 8 saved responses"),
        (8, 9, 20, 0, "8 of 9 saved responses (--serve has all), all 20 items of evaluations"),
        (0, 0, 20, 5, "20 of 25 items of evaluations (--serve has all)"),
        (0, 0, 0, 0, "no saved responses"),
    ],
)
def test_what_a_page_holds_is_told(held: int, saved: int, items: int, left_out: int, told: str) -> None:
    written = {"responses": held, "responses_saved": saved, "items": items, "items_left_out": left_out}
    assert what_it_holds(written) == told


def test_kind_is_that_of_the_settings_without_the_seed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{i}", [1], seed=i, prompts=1 + i // 2, tokens=False) for i in range(3)]
    write_page(runs, tmp_path / "p.html", None)
    kinds = [shown["kind"] for shown in page_data((tmp_path / "p.html").read_text())["runs"]]
    assert kinds[0] == kinds[1] != kinds[2]


def test_the_wing_reads_folders_without_torch() -> None:
    code = (
        "import sys, sapo_vl.viewing.collecting, sapo_vl.viewing.serving\n"
        "assert not {'torch', 'transformers', 'mpld3', 'matplotlib'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_page_that_cannot_be_made_costs_no_run_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the fault is ours: it shows, with its traceback."""
    from sapo_vl import pipeline

    monkeypatch.setattr(pipeline, "write_page", lambda *_: {}["nothing"])
    assert pipeline._page(tmp_path) == ""
    assert f"`sapo-vl view {tmp_path}` tries again" in caplog.text and "KeyError: 'nothing'" in caplog.text
