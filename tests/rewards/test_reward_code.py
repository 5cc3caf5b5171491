"""The reward `code`: programs by hand, and the ways to pass without solving anything."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_helpers import respond
from scoring_helpers import group

from rewards import REWARDS, RewardOutput, Unscorable
from rewards.workers.preflight import setting_problem
from sapo_vl.scoring.scorer import Scorer, ScoringConfig
from sapo_vl.types import ScoreStatus

ADD = "print(sum(map(int, input().split())))"
SUMS = [{"input": "3 4\n", "output": "7\n"}, {"input": "10 -4\n", "output": "6\n"}]
DOUBLE = "def double(x):\n    return 2 * x"
ASSERTS = ["assert double(3) == 6", "assert double('ab') == 'abab'", "assert double([1]) == [1, 1]"]


def fence(program: str) -> str:
    return f"```python\n{program}\n```"


def run(program: str, text: str = "<think> hm </think> {}", params: dict | None = None, **meta: object) -> RewardOutput:
    return REWARDS["code"](respond(text.replace("{}", fence(program)), **meta), **(params or {}))


def passed(program: str, *asserts: str, **meta: object) -> float:
    out = run(program, asserts=list(asserts), **meta)
    assert out.score == (out.parts["passed"] == 1)
    return out.parts["passed"]


# --- standard input and output


@pytest.mark.parametrize(
    ("program", "share"),
    [
        (ADD, 1),
        ("a, b = map(int, input().split())\nprint(a + b, end='')", 1),
        ("import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b, '  \\n\\n')", 1),
        ("print(7)", 1 / 2),  # the example of the prompt
        ("print(sum(map(int, input().split())) + 1)", 0),
        (f"print('The sum is')\n{ADD}", 0),
        (f"{ADD}\nraise SystemExit(1)", 0),  # the right output, and then a crash
        (f"{ADD}\n1/0", 0),
        (f"{ADD}\nimport sys; sys.exit(0)", 1),
        ("", 0),
        ("print(", 0),
        ("import no_such_module", 0),
        ("import numpy", 0),  # the standard library, nothing else
        ("if __name__ == '__main__':\n    " + ADD, 1),
    ],
)
def test_programs_that_read_and_print(program, share):
    out = run(program, tests=SUMS)
    assert (out.score, out.parts["passed"]) == (share == 1, share)


def test_lines_are_compared_without_white_space_at_their_ends():
    tests = [{"input": "", "output": "1 2\n  3\n"}]
    assert run("print('1 2 \\n  3')", tests=tests).score == 1
    assert run("print('1 2\\n3')", tests=tests).score == 0
    assert run("print('1  2\\n  3')", tests=tests).score == 0
    assert run("print('\\n1 2\\n  3')", tests=tests).score == 0


def test_what_the_parts_say():
    tests = [{"input": f"{i}", "output": "0"} for i in range(4)]
    out = run("i = int(input())\nprint([0, 1, 1 // (i - 2), 5][i])", tests=tests)
    assert out == RewardOutput(0.0, {"passed": 1 / 4, "timed_out": 0, "crashed": 1 / 4})
    out = run("i = int(input())\nwhile i == 1: pass\nprint(0)", params={"wall_s": 2.0}, tests=tests)
    assert out == RewardOutput(0.0, {"passed": 1 / 4, "timed_out": 3 / 4, "crashed": 0})  # those after it, too
    out = run("while True: print('x' * 9999)", tests=tests[:1])
    assert out == RewardOutput(0.0, {"passed": 0, "timed_out": 0, "crashed": 1})
    assert run("", tests=tests) == RewardOutput(0.0, {"passed": 0, "timed_out": 0, "crashed": 0})


def test_all_cases_share_the_time_in_total():
    tests = [{"input": "", "output": "0"}] * 100
    out = run("import time; time.sleep(1.2); print(0)", params={"total_s": 4.0}, tests=tests)
    assert out.score == 0 and 0 < out.parts["passed"] <= 0.03
    assert out.parts["passed"] + out.parts["timed_out"] == pytest.approx(1)


# --- which program


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("{}", 1),
        ("Here it is:\n{}\nIt adds.", 1),
        ("<think> so </think> <answer>\n{}\n</answer>", 1),
        ("```python\nprint(0)\n```\nNo:\n{}", 1),  # the last block counts
        ("{}\n```python\nprint(0)\n```", 0),
        ("{}\n```text\n7\n```", 1),  # a block of something else
        ("{}\n```\n7\n```", 1),
        ("{}\n```python\nprint(0)", 1),  # not closed
        ("{} <answer>\n```python\nprint(0)\n```\n</answer>", 0),  # tags go first
        ("{} <answer> done </answer>", 0),
        ("<answer>\n{}", 0),
        ("no program", 0),
    ],
)
def test_the_last_block_of_the_answer_is_the_program(text, score):
    assert run(ADD, text, tests=SUMS).score == score


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\n```python\n{ADD}\n```\n</think>",
        f"<think>\n```python\n{ADD}\n```",
        ADD,
        f"`{ADD}`",
        f"```\n{ADD}\n```",
        f"```c\n{ADD}\n```",
        f"```python\n{ADD}",
    ],
)
def test_what_is_no_program(text):
    assert REWARDS["code"](respond(text, tests=SUMS)).score == 0


def test_names_of_the_language():
    for name in ("python", "Python", "py", "python3", "python  "):
        assert REWARDS["code"](respond(f"```{name}\n{ADD}\n```", tests=SUMS[:1])).score == 1
    assert REWARDS["code"](respond(f"  ```python\n{ADD}\n  ```  ", tests=SUMS[:1])).score == 1


# --- asserts


@pytest.mark.parametrize(
    ("program", "share"),
    [
        (DOUBLE, 1),
        ("double = lambda x: x + x", 1),
        ("def double(x):\n    return x * 3", 0),
        ("def double(x):\n    return x + x if x == 3 else None", 1 / 3),
        ("def double(x):\n    print(6)\n    return x + x", 1),  # printing is no part of it
        ("def double(x):\n    return input()", 0),
        ("def triple(x):\n    return 3 * x", 0),
        (DOUBLE + "\n1/0", 0),
        ("class double:\n    pass", 0),
        (DOUBLE + "\nif __name__ == '__main__':\n    1/0", 1),
        ("import functools\n@functools.cache\ndef double(x):\n    return 2 * x", 2 / 3),  # a list cannot be hashed
    ],
)
def test_functions(program, share):
    assert passed(program, *ASSERTS) == pytest.approx(share)


@pytest.mark.parametrize(
    ("program", "case"),
    [
        ("def f(x): return x", "assert f(1.5) == 1.5 and f(None) is None and f(True) is True"),
        ("def f(x): return x", "assert f((1, [2, {'a': {3}}])) == (1, [2, {'a': {3}}])"),
        ("def f(x): return x", "assert f(b'x') == b'x' and f(1j) == 1j and f(2 ** 70) == 2 ** 70"),
        ("def f(x): return x", "assert isinstance(f([1]), list) and isinstance(f((1,)), tuple)"),
        ("def f(x): return x", "assert f(float('inf')) == float('inf') and f('\\ud800\\u4e00') == '\\ud800\\u4e00'"),
        ("def f(x): return range(x)", "assert f(3) == range(3) and list(f(3)) == [0, 1, 2]"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("from collections import *\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("from collections import *\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)", "assert f() == (1, 2)"),
        ("def f(a, *, b=2): return a * b", "assert f(3, b=4) == 12 and f(a=3) == 6"),
        ("LIMIT = 3", "assert LIMIT == 3"),
        ("def f(x): return 1 / x", "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError:\n    pass"),
        ("def f(x): return x / 3", "assert abs(f(1) - 0.333) < 0.001"),
        ("def f(x): return x / 3", "assert math.isclose(f(1), 1 / 3)"),  # the real one, imported or not
        ("def f(x): return x / 3", "import math\nassert math.isclose(f(1), 1 / 3)"),
        ("def f(x): return x", "assert sorted([f(i) for i in (2, 1)]) == [1, 2]"),
        ("def f(x): return x + 1", "def check(candidate):\n    for i in range(5):\n"
         "        assert candidate(i) == i + 1\ncheck(f)"),
        ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
         "    def pop(self): return self.items.pop()",
         "s = Stack()\ns.push(4)\ns.push(5)\nassert s.items == [4, 5]\nassert s.pop() == 5 and s.pop() == 4"),
        ("class P:\n    def __init__(self, x): self.x = x\ndef total(ps): return sum(p.x for p in ps)",
         "assert total([P(1), P(2)]) == 3"),
        ("def f(g): return 1\ndef h(x): return x", "assert f(h) == 1"),  # its own function, handed back
    ],
)  # fmt: skip
def test_what_asserts_can_do(program, case):
    assert passed(program, case) == 1
    assert passed(program, f"{case}\nassert False") == 0


def test_a_name_that_python_has_too():
    program = "def sum(x, y): return x + y\ndef math(x): return x"
    assert passed(program, "assert sum(3, 4) == 7") == 0  # the built-in one
    assert passed(program, "assert sum(3, 4) == 7", entry_point="sum") == 1
    assert passed(program, "assert math(3) == 3") == 1  # called, so no module


def test_arguments_are_copies():
    assert passed("def f(x): x.append(1)", "x = []\nf(x)\nassert x == []") == 1


# --- passing without solving

EQUALS_ALL = """
class Yes:
    __hash__ = lambda self: 6
    __bool__ = lambda self: True
    __len__ = lambda self: 6
    __abs__ = __sub__ = __rsub__ = __getitem__ = __call__ = lambda self, *_: self
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, other: True
"""
WRITE_ALL = """
import os
def shout(text):
    for fd in range(64):
        try:
            os.write(fd, text)
        except OSError:
            pass
"""
CASES = [*ASSERTS, "assert not double(3) != 6", "assert abs(double(3) - 6) < 1e-9", "assert double(3) in (6,)"]
CASES += ["assert [double(3)] == [6]", "assert {double(3): 1} == {6: 1}", "assert double(3) >= 6"]
CASES += ["assert len(double('ab')) == 4", "assert 6 == double(3)", "assert all([double(3) == 6])"]


@pytest.mark.parametrize(
    "program",
    [
        EQUALS_ALL + "def double(x): return Yes()",
        EQUALS_ALL + "double = Yes()",
        EQUALS_ALL + "def double(x): return [Yes()]",
        EQUALS_ALL + "class S(str, Yes): pass\nS.__eq__ = lambda s, o: True\ndef double(x): return S()",
        EQUALS_ALL + "class N(int):\n    __eq__ = __ne__ = __ge__ = lambda s, o: True\ndef double(x): return N(1)",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\ndef double(x): os._exit(0)",
        "def double(x): raise SystemExit(0)",
        "def double(x): raise KeyboardInterrupt",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(1, signal.SIGKILL)",
        "print('passed\\n' * 9)\nimport os\nos._exit(0)",
        WRITE_ALL + "shout(b'passed\\n' * 9)\nos._exit(0)",
        WRITE_ALL + "shout(b'[1, \"value\", null]\\n' * 99)",
        WRITE_ALL + "def double(x): shout(b'[3, \"value\", [\"handle\", 0]]\\n')",
        "import atexit, os\natexit.register(lambda: (print('passed'), os._exit(0)))",
        "import builtins\nbuiltins.AssertionError = type('E', (), {})\nbuiltins.abs = lambda x: 0\ndef double(x): 0",
        "import builtins, sys\nsys.modules['__main__'].encode = lambda *_: 6\ndef double(x): return 1",
        "import json\njson.dumps = lambda *_: 'passed'\ndef double(x): return 1",
        "import sys\nfor m in list(sys.modules.values()):\n    vars(m).setdefault('double', lambda x: True)\n"
        "def double(x):\n    f = sys._getframe()\n    while f:\n        f.f_globals['encode'] = lambda *_: True\n"
        "        f = f.f_back",
        "import glob\ndef double(x):\n    for p in glob.glob('/*.py') + glob.glob('/proc/*/cmdline'):\n"
        "        print(open(p).read())\n        if 'ert doub' + 'le(3)' in open(p).read(): return 6",
        "import ctypes\ndef double(x): ctypes.string_at(0)",
        "def double(x): return double(x)",
        "double = 6",
        "abs = len = isinstance = all = lambda *_: True\ndef double(x): return 1",
        "import threading, os\nthreading.Timer(0.05, lambda: os._exit(0)).start()\ndef double(x): pass",
    ],
)  # fmt: skip
def test_forged_passes(program):
    out = run(program, asserts=CASES, params={"wall_s": 1.0})
    assert (out.score, out.parts["passed"]) == (0, 0)
    assert run(program, asserts=CASES[:1], params={"wall_s": 1.0}).score == 0


def test_a_number_that_claims_to_be_another_arrives_as_what_it_is():
    program = "class N(int):\n    __eq__ = lambda s, o: True\n    __repr__ = lambda s: '6'\ndef double(x): return N(1)"
    assert passed(program, "assert double(3) == 6") == 0
    assert passed(program, "assert double(3) == 1") == 1


@pytest.mark.parametrize(
    "case", ["f() != 5", "f()", "not f() == 5", "f() not in [5]", "{f()} != {5}", "f() > 5", "[f()] != [5]", "not f()"]
)
def test_an_object_of_the_program_is_no_value(case):
    assert passed(EQUALS_ALL + "def f(): return Yes()", f"assert {case}") == 0
    assert passed("def f(): return 6 if Yes else 0\nYes = True", f"assert {case}") == (case != "not f()")


def test_a_late_reply_is_no_reply_to_the_next_question():
    program = "import time\ndef f(x):\n    time.sleep(x)\n    return x"
    out = run(program, asserts=["assert f(1.2) == 1.2", "import time\ntime.sleep(0.9)\nassert f(0) == 1.2"],
              params={"wall_s": 1.0})  # fmt: skip
    assert out.parts == {"passed": 0, "timed_out": 1, "crashed": 0}


def test_the_other_cases_are_not_visible():
    # The solution's sandbox holds its own text and the calls, not what the asserts expect.
    program = "import os\ndef look():\n    return {p: open(p).read() for p in os.listdir('.') + ['/' + n for n in "
    program += "os.listdir('/')] if os.path.isfile(p)}"
    assert passed(program, "seen = look()\nassert 'look' in str(seen) and 'n33dle' + '' not in seen.values()") == 1
    assert passed(program, "needle = 'n33' + 'dle'\nassert needle not in str(look())", "x = 'n33dle'") == 1


def test_a_case_that_loops_ends_the_response():
    out = run("def f(x):\n    while x: pass", asserts=["assert f(0) is None", "f(1)", "f(0)"], params={"wall_s": 2.0})
    assert out.parts == {"passed": 1 / 3, "timed_out": 2 / 3, "crashed": 0}
    out = run("while True: pass", asserts=["f(1)", "f(0)"], params={"wall_s": 2.0})
    assert out.parts == {"passed": 0, "timed_out": 1, "crashed": 0}
    out = run("def f(x): return x", asserts=["while f(1): pass", "assert f(2) == 2"], params={"wall_s": 2.0})
    assert out.parts == {"passed": 1 / 2, "timed_out": 1 / 2, "crashed": 0} or out.parts["timed_out"] == 1


def test_too_much_of_anything_fails_the_case():
    assert passed("def f(): return 'x' * (5 << 20)", "assert len(f()) == 5 << 20") == 0
    assert passed("def f():\n    while True: yield 1", "assert next(f()) == 1") == 0
    assert passed("def f():\n    x = []\n    x.append(x)\n    return x", "assert f()[0]") == 0
    assert passed("def f(): return bytearray(10 ** 10)", "assert f()") == 0


def test_both_kinds_of_cases():
    program = DOUBLE + "\nif __name__ == '__main__':\n    print(double(int(input())))"
    out = run(
        program, tests=[{"input": "4", "output": "8"}], asserts=["assert double(3) == 6", "assert double(3) == 7"]
    )
    assert out == RewardOutput(0.0, {"passed": 2 / 3, "timed_out": 0, "crashed": 0})


@pytest.mark.parametrize(
    ("printed", "expected", "text", "values"),
    [
        ("1.50 2", "1.5 2.0", 0, 1),
        ("0.1", "1e-1", 0, 1),
        ("  7", "7", 0, 1),
        ("7", "07", 0, 1),
        ("7 ", "7", 1, 1),
        ("1.5000001", "1.5", 0, 0),  # decimals, not floats: nothing is rounded
        ("1 2", "12", 0, 0),
        ("1\n2", "1 2", 0, 0),
        ("1", "1\n1", 0, 0),
        ("yes 1.0", "yes 1", 0, 0),  # a line with words is text
        ("nan", "NaN", 0, 0),
        ("1_0", "10", 0, 0),
        ("\uff11", "1", 0, 0),
    ],
)
def test_output_by_value(printed, expected, text, values):
    case = [{"input": "", "output": expected}]
    program = f"print({printed!r})"
    assert run(program, tests=case).score == text
    assert run(program, tests=case, compare="values").score == values


def test_a_prelude_runs_first():
    prelude = "from math import *\nfrom typing import List"
    program = "def area(r: List[int]):\n    return floor(pi * r[0])"
    assert run(program, asserts=["assert area([2]) == 6"], prelude=prelude).score == 1
    assert run(program, asserts=["assert area([2]) == 6"]).score == 0
    assert run("print(floor(2.5))", tests=[{"input": "", "output": "2"}], prelude=prelude).score == 1
    assert (
        run("def floor(x): return 9\nprint(floor(2.5))", tests=[{"input": "", "output": "9"}], prelude=prelude).score
        == 1
    )


def test_a_postlude_runs_last():
    postlude = "area = globals().get('surface', area)"
    case = {"asserts": ["assert area(2) == 4"], "postlude": postlude}
    assert run("def area(n):\n    return n\ndef surface(n):\n    return n * n", **case).score == 1
    assert run("def area(n):\n    return n", **case).score == 0
    assert run("def surface(n):\n    return n * n\narea = (", **case).score == 0  # it ends no statement of the program


def test_numpy_where_it_is_promised():
    program = "import numpy as np\nprint(int(np.array(input().split(), int).sum()))"
    assert run(program, tests=SUMS).parts["crashed"] == 1
    promised = {"packages": True, "wall_s": 20.0, "cpu_s": 10, "total_s": 60.0}
    assert run(program, tests=SUMS, params=promised).score == 1
    sums = "import numpy as np\ndef f(x):\n    return {give}"
    for give, score in (("np.int64(x)", 1), ("[np.float64(x)]", 0), ("np.array([x, x])", 0), ("np.bool_(x)", 0)):
        out = run(sums.replace("{give}", give), asserts=["assert f(7) == 7"], params=promised)
        assert out.score == score, give
    assert run(sums.replace("{give}", "[np.float64(x), np.True_]"), asserts=["assert f(7) == [7.0, True]"],
               params=promised).score == 1  # fmt: skip


@pytest.mark.parametrize(
    ("text", "any_fence", "python"),
    [
        ("```\n{program}\n```", 1, 0),
        ("```cpp\n{program}\n```", 1, 0),
        ("```python\n{program}\n```\nIt prints\n```\n7\n```", 0, 1),
        ("```\n7\n```\n```Python3\n{program}\n```", 1, 1),
        ("```\n{program}", 0, 0),
    ],
)
def test_any_block_where_it_is_asked_for(text, any_fence, python):
    x = respond(text.replace("{program}", ADD), tests=SUMS)
    assert REWARDS["code"](x, any_fence=True).score == any_fence
    assert REWARDS["code"](x).score == python


def test_each_case_has_time_of_its_own():
    tests = [{"input": "", "output": "0"}] * 4
    program = "import time; time.sleep(0.6); print(0)"
    assert run(program, params={"total_s": 1.0}, tests=tests).score == 0
    assert run(program, params={"total_s": 0.0}, tests=tests).score == 1
    asserts = ["assert f() is None"] * 4
    program = "import time\ndef f(): time.sleep(0.6)"
    assert run(program, params={"total_s": 1.0}, asserts=asserts).score == 0
    assert run(program, params={"total_s": 0.0}, asserts=asserts).score == 1


# --- problems that make no sense


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({}, "nothing to test"),
        ({"tests": [], "asserts": []}, "nothing to test"),
        ({"tests": "1"}, r"meta\['tests'\] must be a list"),
        ({"tests": ["1"]}, "must hold {'input'"),
        ({"tests": [{"input": "1"}]}, "must hold {'input'"),
        ({"tests": [{"input": 1, "output": 2}]}, "must hold {'input'"),
        ({"tests": SUMS * 251}, "at most 500"),
        ({"tests": SUMS, "compare": "numbers"}, "'text' or 'values'"),
        ({"tests": SUMS, "prelude": ["import math"]}, "prelude"),
        ({"tests": SUMS, "postlude": 1}, "postlude"),
        ({"asserts": [""]}, "must hold texts"),
        ({"asserts": [1]}, "must hold texts"),
        ({"asserts": ["assert double(3"]}, "case_0 is no Python"),
        ({"asserts": ["assert double(3) == 6", "x = \0"]}, "case_1 is no Python"),
        ({"asserts": ["assert double(lambda: 3)"]}, "hands over a function"),
        ({"asserts": ["assert double(3) == 6"], "entry_point": 3}, "entry_point"),
    ],
)
def test_cases_that_make_no_sense_are_unscorable(meta, reason):
    with pytest.raises(Unscorable, match=reason):
        run(DOUBLE, **meta)


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"total_s": 10}, "total_s=10 must be less than rewards.timeout_s=10"),
        ({"wall_s": 0}, "wall_s must be a positive number, got 0"),
        ({"cpu_s": 1.5}, "cpu_s must be a positive integer, got 1.5"),
        ({"memory_mb": True}, "memory_mb must be a positive integer"),
        ({"unsafe": "yes"}, "unsafe must be true or false"),
        ({"sandbox": False}, "unexpected keyword argument 'sandbox'"),
        ({"wall_s": 2, "total_s": 9.5}, ""),
        ({"total_s": 0}, "total_s=0 (that is 2500 s for 500 cases) must be less than rewards.timeout_s=10"),
        ({"total_s": False}, "total_s must be a positive number"),
        ({"packages": "numpy"}, "packages must be true or false"),
        ({"any_fence": 1}, "any_fence must be true or false"),
    ],
)
def test_settings(params, problem):
    found = setting_problem("code", params, timeout_s=10)
    assert problem in found and bool(found) == bool(problem)


def test_in_workers_beside_other_terms():
    texts = [fence(ADD), fence("print(7)"), fence("while True: pass"), "none"]
    config = ScoringConfig(combine={"accuracy": 1.0, "format": 0.1}, params={"code": {"wall_s": 2.0}})
    with Scorer(config) as scorer:
        scorer.check([("sum", "code")], "programs")
        [scored] = scorer.score([group(texts, task="sum", reward="code", meta={"tests": SUMS})], max_tokens=99)
    assert [r.score_status for r in scored.rollouts] == [ScoreStatus.SCORED] * 4
    assert [r.reward for r in scored.rollouts] == [1.0, 0.0, 0.0, 0.0]
    assert [r.parts["accuracy/passed"] for r in scored.rollouts] == [1.0, 0.5, 0.0, 0.0]
    assert scored.rollouts[2].parts["accuracy/timed_out"] == 1.0


@given(st.text(max_size=60))
@settings(max_examples=15, deadline=None)
def test_any_program_is_scored(program):
    assert run(program, tests=SUMS[:1]).score == 0
