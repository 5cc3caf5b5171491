"""bench/agreement.py on published responses and golds that were written for this test."""

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = "['1 cm', '2 cm', '3 cm']"


def write(path: Path, *rows: dict[str, Any]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/agreement.py", str(folder), "--workers", "1", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.timeout(120)
def test_verdicts_side_by_side_and_golds_against_themselves(tmp_path: Path):
    folder = tmp_path / "published"
    folder.mkdir()
    question = {"question": "How long is <image 1>?", "subject": "Art", "options": LENGTHS, "answer": "B"}
    lines = [("Answer: B", True), ("Answer: C", False), ("It is B.", True), ("**Answer: B**", 0), ("Answer: 9 cm", 1.0)]
    responses = [
        {"id": f"test_Art_{number}", **question, "response": said, "official": official}
        for number, (said, official) in enumerate(lines)
    ]
    # One name is an alias, and begins with the name of another benchmark.
    write(folder / "mmmu_pro_standard10_mine.jsonl.gz", *responses, {**responses[0], "id": "Z", "answer": "Z"})
    # Rows in a file of their own, without pictures; a response without a box.
    options = {"question": "Which?", "level": 1, "subject": "sets", "options": "['8: 5', '5: 8']"}
    rows = [{"id": "1", **options, "answer": "A"}, {"id": "2", **options, "answer": "5:8"}]
    write(folder / "mathvision_rows.jsonl", *rows, {"id": "3", **options, "answer": "7"}, {"id": "4", **options})
    said = [("\\boxed{8:5}", False), ("so A", True)]
    write(
        folder / "mathvision_other.jsonl",
        *({"id": str(number), "response": text, "official": ok} for number, (text, ok) in enumerate(said, start=1)),
    )
    out = tmp_path / "found.json"
    done = run(folder, "--json", str(out), "--samples", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    table = {(row["file"], row["of_which"]): row for row in found["responses"]}
    mine = table["mmmu_pro_standard10_mine", "all"]
    assert (mine["n"], mine["official"], mine["ours"], mine["disagree"]) == (5, 0.6, 0.4, 0.6)
    assert found["disagreements"]["mmmu_pro_standard10_mine"] == {
        "official right, ours wrong: no answer": ["test_Art_2"],
        "official wrong, ours right: the gold as it stands": ["test_Art_3"],
        "official right, ours wrong: not an option": ["test_Art_4"],
    }
    other = {which: table["mathvision_other", which] for which in ("all", "with a box")}
    assert [(row["n"], row["official"], row["ours"]) for row in other.values()] == [(2, 0.5, 0.5), (1, 0, 1)]
    golds = found["golds"]["mathvision_rows"]
    assert (golds["n"], golds["unequal"], list(golds["unscorable"]), golds["refused"]) == (
        4,
        {},
        ["3"],
        {"4": "left out: no gold"},
    )
    for shown in ("| mmmu_pro_standard10_mine | all | 5 | 0.6000 | 0.4000 | 60.00% |", "test_Art_2", "1 lines refused"):
        assert shown in done.stdout


def test_a_file_of_no_benchmark_is_refused_by_name(tmp_path: Path):
    write(tmp_path / "nothing_rows.jsonl", {"id": "1"})
    done = run(tmp_path)
    assert done.returncode == 1 and "nothing_rows.jsonl: begins with the name of no benchmark" in done.stderr


GOOD = {"id": "1", "options": LENGTHS, "answer": "B", "response": "Answer: B", "official": True}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([GOOD | {"official": "True"}], "x.jsonl, response 1 (id '1'): `official` must be true, false or a number"),
        (
            [GOOD, GOOD | {"id": "2", "official": None}],
            "response 2 (id '2'): `official` must be true, false",
        ),
        ([GOOD | {"official": 5}], "it is 5"),
        ([{"id": "1", "response": "Answer: B"}], "it is missing"),
        ([GOOD | {"response": ["Answer: B"]}], "`response` must be a text, or null for none; it is list"),
        (
            [{"id": "1", "official": 1}, GOOD | {"id": "2"}],
            "response 1 (id '1'): `response` must be a text, or null for none",
        ),
        ([[1, 2]], "x.jsonl:1: a line must be a JSON object, got '[1, 2]'"),
        ([{"id": "1", "response": "Answer: B", "official": 1}], "mmmu_pro_vision_rows.jsonl must be beside it"),
        ([GOOD, GOOD | {"id": "2"}, GOOD], "x.jsonl:3: the id '1' is that of line 1, too"),
        ([{"id": "1"}, {"id": 1}], "x.jsonl:2: the id '1' is that of line 1, too"),
        ('{"id": 1,\n', "x.jsonl:1: no JSON object on one line"),
        ("", "x.jsonl has no lines"),
        (None, "is no folder"),
    ],
)
def test_what_is_not_in_the_format_is_named_on_one_line(tmp_path: Path, monkeypatch, content, says: str):
    spec = importlib.util.spec_from_file_location("agreement", ROOT / "bench" / "agreement.py")
    assert spec is not None and spec.loader is not None
    agreement = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "agreement", agreement)  # its dataclasses look their module up
    spec.loader.exec_module(agreement)
    text = content if isinstance(content, str) else "\n".join(map(json.dumps, content or []))
    (tmp_path / "mmmu_pro_vision_x.jsonl").write_text(text)
    folder = tmp_path / "none" if content is None else tmp_path
    monkeypatch.setattr(sys, "argv", ["agreement.py", str(folder)])
    with pytest.raises(SystemExit) as refused:
        agreement.main()
    assert says in str(refused.value) and "\n" not in str(refused.value)
