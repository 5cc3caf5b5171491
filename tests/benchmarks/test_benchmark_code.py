"""LiveCodeBench: programs in the sandbox, and hidden tests that are read without unpickling."""

import base64
import json
import pickle
import zlib
from datetime import datetime
from pathlib import Path

import pytest
from benchmark_helpers import Opened, item, opened, said, scored
from benchmark_sets import livecodebench, packed
from reward_helpers import respond

from rewards import REWARDS
from rewards.workers.preflight import setting_problem
from sapo_vl.benchmarks import BENCHMARKS, Row
from sapo_vl.benchmarks.livecodebench import windows
from sapo_vl.benchmarks.opening import open_benchmark
from sapo_vl.benchmarks.packed_text import unpack_text
from sapo_vl.data.images import read_image
from sapo_vl.data.problem_set import DataError
from sapo_vl.types import Problem

MEAN = "a, b = map(int, input().split())"
PAIR = """class Solution:
    def pair(self, nums: List[int], target: int) -> List[int]:
        seen = set()
        for n in nums:
            if target - n in seen:
                return {result}
            seen.add(n)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened("livecodebench", tmp_path_factory.mktemp("livecodebench"))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (f"{MEAN}\nprint((a + b) / 2)", 1),
        (f"{MEAN}\nprint('%.2f' % ((a + b) / 2))", 1),  # 1.50 for 1.5: numbers by value
        (f"{MEAN}\nprint(floor((a + b) / 2))", 0),  # imports are promised; 1 is not 1.5
        (f"{MEAN}\nprint(Fraction(a + b, 2))", 0),  # the module fractions is not
        ("print(1.5)", 0),  # the public test alone
        (f"{MEAN}\nprint('mean', (a + b) / 2)", 0),
        ("print(", 0),
    ],
)
def test_programs_that_print(found: Opened, program: str, expected: float) -> None:
    problem = found.problems["livecodebench-abc1"]
    assert scored(problem, f"Here:\n```python\n{program}\n```") == expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (PAIR.replace("{result}", "[target - n, n]"), 1),  # List needs no import
        (PAIR.replace("{result}", "(target - n, n)"), 1),  # a tuple is as good as a list
        (PAIR.replace("{result}", "[n, target - n]"), 0),  # in another order
        (PAIR.replace("class Solution", "class Answer").replace("{result}", "[target - n, n]"), 0),
        ("class Solution:\n    def pair(self, nums, target):\n        return [1, 2]", 0),  # the public test alone
        (
            "class Same(list):\n    __eq__ = lambda *_: True\nclass Solution:\n    pair = lambda *_: Same()",
            0,
        ),
    ],
)
def test_methods_that_are_called(found: Opened, program: str, expected: float) -> None:
    problem = found.problems["livecodebench-3001"]
    assert scored(problem, f"```python\n{program}\n```") == expected


def judged(problem: Problem, response: str) -> float:
    """The score under the arguments that the benchmark gives its rule."""
    params = BENCHMARKS["livecodebench"].params["code"]
    return REWARDS["code"](respond(response, **problem.meta), **params).score


@pytest.mark.parametrize(
    ("id", "response", "expected"),
    [
        ("abc1", f"```python\nimport numpy as np\n{MEAN}\nprint(np.mean([a, b]))\n```", 1),
        ("abc1", f"```python\nimport sortedcontainers\n{MEAN}\nprint((a + b) / 2)\n```", 1),
        ("abc1", f"```\n{MEAN}\nprint((a + b) / 2)\n```", 1),  # the last block, whatever it is called
        ("abc1", f"```python\n{MEAN}\nprint((a + b) / 2)\n```\nIt prints:\n```\n1.5\n```", 0),
        ("abc1", "```python\nimport torch\n```", 0),
        ("3001", "```python\n" + PAIR.replace("{result}", "[target - n, n]") + "```", 1),
        ("3001", "```python\ndef pair(nums, target):\n    return None if len(nums) < 2 else nums\n```", 0),
        ("3001", "```python\n{plain}\n```", 1),  # a function and no class
        ("3001", "```python\ndef pairs(nums, target):\n    pass\n```", 0),
        ("3001", "```python\nimport numpy as np\n{numbers}\n```", 1),  # numbers of numpy's are numbers
    ],
)  # fmt: skip
def test_conditions_of_the_official_checker(found: Opened, id: str, response: str, expected: float) -> None:
    plain = "def pair(nums, target):\n    return next(([target - n, n] for n in nums if target - n in nums"
    plain += " and nums.index(target - n) < nums.index(n)), None)"
    numbers = plain.replace("[target - n, n]", "[np.int64(target - n), np.int64(n)]")
    response = response.replace("{plain}", plain).replace("{numbers}", numbers)
    assert judged(found.problems[f"livecodebench-{id}"], response) == expected


def test_settings_fit_the_longest_problem() -> None:
    benchmark = BENCHMARKS["livecodebench"]
    assert setting_problem("code", benchmark.params["code"], benchmark.timeout_s) == ""
    assert benchmark.timeout_s > 500 * 7
    many = json.dumps([{"input": str(i), "output": "", "testtype": "stdin"} for i in range(600)])
    row = next(row for row in livecodebench() if row["question_id"] == "abc1") | {"public_test_cases": many}
    (problem,) = benchmark.problems(Row(index=0, cells=row, image=read_image))
    assert len(problem.meta["tests"]) == 500
    assert judged(problem, "no program") == 0, "not unscorable"


def test_windows_of_contest_dates(found: Opened) -> None:
    assert found.problems["livecodebench-abc1"].meta["contest_date"] == "2025-02-01"
    months = ["2024-07", "2024-08", "2025-01", "2025-02", "2025-04", "2025-05", ""]
    scores = [1.0, 0.0, 1.0, 0.0, None, 1.0, 1.0]
    items = [item(str(i), {"groups": {"month": m}}, s) for i, (m, s) in enumerate(zip(months, scores, strict=True))]
    assert windows(items) == {
        "2024.08-2025.02": 0.5, "2024.08-2025.02 items": 2, "2025.02-2025.05": 0.0, "2025.02-2025.05 items": 1
    }  # fmt: skip
    assert windows(items[:1]) == {}
    row = livecodebench()[0]
    dates = [
        ("2025-03-09T12:00:00", "2025-03"),
        (datetime(2025, 4, 6), "2025-04"),
        (None, None),
        ("2025-04-06", "2025-04"),
    ]
    for written, month in dates:
        cells = row | {"contest_date": written}
        (problem,) = BENCHMARKS["livecodebench"].problems(Row(index=0, cells=cells, image=read_image))
        assert problem.meta["groups"].get("month") == month
    with pytest.raises(ValueError, match="not a date"):
        list(BENCHMARKS["livecodebench"].problems(Row(index=0, cells=row | {"contest_date": "May"}, image=read_image)))


def test_the_files_of_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the set lies on the hub: a loading script, and six files of JSON lines."""
    good = [row for row in livecodebench() if row["question_id"] in ("abc1", "3001")]
    names = ["test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7))]
    for number, name in enumerate(names, start=1):
        rows = [row | {"question_id": f"{row['question_id']}-{number}"} for row in good]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "code_generation_lite.py").write_text("raise SystemExit('run')")
    benchmark = BENCHMARKS["livecodebench"]

    def numbers(config: str, source: str = str(tmp_path)) -> list[str]:
        return [str(row["question_id"])[-1] for _, row in open_benchmark(benchmark, source, config=config).rows()][::2]

    assert numbers("") == numbers("release_v6") == list("123456")
    assert numbers("v6") == ["6"] and numbers("release_v2") == ["1", "2"] and numbers("v4_v5") == ["4", "5"]
    assert numbers("v6", str(tmp_path / "test3.jsonl")) == ["3"], "one file is what it is"

    asked: list[str] = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        asked.append(f"{repo_type}/{repo}/{name}")
        return str(tmp_path / name)

    monkeypatch.setattr("sapo_vl.data.hub.hf_hub_download", download)
    assert numbers("v5_v6", benchmark.source) == ["5", "6"]
    assert asked == [f"dataset/livecodebench/code_generation_lite/test{i}.jsonl" for i in (5, 6)]
    with pytest.raises(DataError, match="no config 'v7'; there are release_v1, "):
        open_benchmark(benchmark, config="v7")
    (tmp_path / "test2.jsonl").unlink()
    with pytest.raises(DataError, match=r"lacks test2\.jsonl"):
        numbers("release_v3")
    (tmp_path / "test6.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match="pointer of Git LFS"):
        numbers("v6")


def test_rows(found: Opened) -> None:
    assert found.left_out == ["no tests"] and len(found.bad) == 3
    printing, calling = found.problems["livecodebench-abc1"], found.problems["livecodebench-3001"]
    assert len(printing.meta["tests"]) == 2 and len(calling.meta["asserts"]) == 3
    assert "def pair(" in said(calling) and "standard input" in said(printing)
    assert calling.meta["groups"] == {"difficulty": "easy", "platform": "leetcode", "month": "2025-02"}
    assert scored(printing, f"{MEAN}\nprint((a + b) / 2)") == 0, "no code block"


def test_the_builder_of_the_sets_writes_what_pickle_reads() -> None:
    written = zlib.decompress(base64.b64decode(packed([{"input": "\u00e9", "output": "", "testtype": "stdin"}])))
    assert pickle.loads(written) == '[{"input": "\\u00e9", "output": "", "testtype": "stdin"}]'


def pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text", ["", "[]", "\u00e9\U0001f600", "x" * 70_000], ids=len)
def test_texts_of_every_protocol(text: str, protocol: int) -> None:
    assert unpack_text(pack(pickle.dumps(text, protocol))) == text


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('run')",)


REFUSED = [
    (pickle.dumps(Runs()), "a pickle with"),
    (pickle.dumps(["a"]), "a pickle with"),
    (pickle.dumps(("a", "b")), "a pickle with"),
    (pickle.dumps(b"bytes"), "a pickle with"),
    (pickle.dumps("a") + pickle.dumps(Runs()), "must be one text"),
    (b"\x80\x04\x8c\x01a\x8c\x01b.", "of 2 texts"),
    (b"\x80\x04.", "of 0 texts"),
    (pickle.dumps("abc")[:-2], "pickle"),
    (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.", "unicodestring8"),  # announces 2^63 bytes
    (b"\x80\x04\x8c\x02\xff\xfe.", "damaged pickle"),  # not UTF-8
    (b"", "pickle"),
    (b"[]", "opcode"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_anything_else_is_refused_and_not_run(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_text(pack(data))


def test_what_is_not_packed() -> None:
    bomb = pack(pickle.dumps("0" * 1_000_000))
    assert len(bomb) < 3000
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        unpack_text(bomb, max_bytes=1000)
    for bad in ("?", base64.b64encode(b"no zlib").decode(), bomb[:400]):
        with pytest.raises(ValueError, match=r"base64|cut off"):
            unpack_text(bad)
