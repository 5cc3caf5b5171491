"""LiveCodeBench: programs in the sandbox, and hidden tests that are read without unpickling."""

import base64
import pickle
import zlib

import pytest
from benchmark_helpers import Opened, opened, said, scored
from benchmark_sets import packed

from sapo_vl.benchmarks.packed_text import unpack_text

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


def test_rows(found: Opened) -> None:
    assert found.left_out == ["no tests"] and len(found.bad) == 3
    printing, calling = found.problems["livecodebench-abc1"], found.problems["livecodebench-3001"]
    assert len(printing.meta["tests"]) == 2 and len(calling.meta["asserts"]) == 3
    assert "def pair(" in said(calling) and "standard input" in said(printing)
    assert calling.meta["groups"] == {"difficulty": "easy", "platform": "leetcode"}
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
