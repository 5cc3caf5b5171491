r"""Do our rules judge published responses as the benchmarks' own rules do, and do golds score 1 against themselves?

    python bench/agreement.py DIR [--samples 2] [--json OUT] [--timeout 20] [--workers 2]

DIR holds files `<benchmark>_<anything>.jsonl` or `.jsonl.gz`, a JSON object a line. The benchmark is the longest name
of sapo_vl.benchmarks, or of ALIASES, that the file's name begins with: mmmu_pro_standard4_some_model.jsonl.

* Responses: lines with `response` (a text, or null for none), `official` (the published verdict: true or false, or a
  number from 0 to 1) and the columns of the benchmark's row, or, in place of these, the row's `id`: rows stand in
  `<benchmark>_rows.jsonl` then. An item has one line in a file; the second one of an id is an error.
* Rows: lines without `response`. Their golds are scored against themselves.

Rows go through the benchmark's own reader and are scored by the reward it names, where training scores: in worker
processes with a time limit, or here if the reward always ends soon. Public copies often lack the pictures (a blank one
is put there) and name columns differently (RENAMED).

Printed are tables in Markdown, then every kind of disagreement with its count and samples:

* official, ours: mean verdicts, over the responses that we can score. "with a box" are the responses that hold a
  \boxed{}, where the benchmark asks for one and not all have it.
* disagree: the share of items on which the verdicts are more than a half apart.
* golds: rows that the reader refuses or leaves out, golds that cannot be scored, golds that score less than 1 against
  themselves, with the ids of all.
"""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import IN_PROCESS, RewardInput
from rewards.answers.extract import bare, last_answer
from rewards.answers.typeset import typeset
from rewards.weighted import OWN
from rewards.workers.pool import RewardPool
from rewards.workers.worker import Job, Plan, Result, score_one

if TYPE_CHECKING:  # worker processes import this file again: what takes long (torch) is imported where it is used
    from sapo_vl.benchmarks import Benchmark
    from sapo_vl.types import Problem

ALIASES = {"mmmu_pro_standard10": "mmmu_pro_standard"}
# Benchmark -> column of its row -> the column that published copies have in its place.
RENAMED = {
    "dynamath": {"ground_truth": "answer", "knowledge_level": "level"},
    "mathverse": {"question_for_eval": "question", "query_cot": "question"},
    "mmmu": {"answer": "ground_truth"},
}
# Columns without which a gold can be scored all the same; a list of golds alone lacks them.
FILLED = {"mmmu": {"question": "-", "options": str([f"option {number}" for number in range(1, 11)])}}
# Column -> value of a published copy -> that of the row.
VALUES = {"mmmu": {"question_type": {"short-answer": "open"}}}
# Columns that tell a row apart where that is not `id`.
IDENTS = {"dynamath": ("id", "variant"), "mathverse": ("problem_index",), "mathvista": ("pid",)}
BLANK = "blank"  # in the cell of a picture
SUFFIXES = (".jsonl.gz", ".jsonl")

Cells = Mapping[str, Any]


@dataclass
class Verdicts:
    """What came of one file of responses: one entry an item, in the order of the file."""

    ids: list[str] = field(default_factory=list)
    official: list[float] = field(default_factory=list)
    ours: list[Result] = field(default_factory=list)
    boxed: list[bool] = field(default_factory=list)  # the response holds a box
    answers: list[tuple[str, str]] = field(default_factory=list)  # (gold, answer or "")
    refused: list[str] = field(default_factory=list)
    asks_box: bool = False


@dataclass
class Golds:
    """What came of one file of rows: ids, with the reason."""

    n: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    unscorable: dict[str, str] = field(default_factory=dict)
    unequal: dict[str, str] = field(default_factory=dict)


def lines(path: Path, benchmark: Benchmark) -> Iterator[dict[str, Any]]:
    """Raises SystemExit for a file that cannot be read, a line that is no JSON object, and an item that was there."""
    number, code = 0, "utf-8-sig"
    seen: dict[str, int] = {}  # name of an item -> its line
    try:
        with gzip.open(path, "rt", encoding=code) if path.suffix == ".gz" else path.open(encoding=code) as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                row = json.loads(text)
                if not isinstance(row, dict):
                    raise SystemExit(f"{path.name}:{number}: a line must be a JSON object, got {text.strip()[:40]!r}")
                name = item_name(benchmark, row)
                if name is not None and (first := seen.setdefault(name, number)) != number:
                    # Counted twice it would weigh twice, and of two rows the last would stand for both.
                    raise SystemExit(
                        f"{path.name}:{number}: the id {name!r} is that of line {first}, too; keep one of them, or put "
                        "further responses to an item into a file of their own"
                    )
                yield row
    except json.JSONDecodeError as error:
        raise SystemExit(f"{path.name}:{number}: no JSON object on one line: {error}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SystemExit(f"{path.name}: cannot be read: {error}") from None


def checked(path: Path, responses: Sequence[Cells]) -> None:
    """Raises SystemExit for a response without its text or verdict."""
    for number, line in enumerate(responses, start=1):
        said, official = line.get("response"), line.get("official")
        where = f"{path.name}, response {number} (id {line.get('id')!r})"
        if "response" not in line or not isinstance(said, str | None):
            kind = type(said).__name__ if "response" in line else "missing"
            raise SystemExit(f"{where}: `response` must be a text, or null for none; it is {kind}")
        if not isinstance(official, bool | int | float) or not 0 <= official <= 1:
            shown = repr(official) if "official" in line else "missing"
            raise SystemExit(f"{where}: `official` must be true, false or a number from 0 to 1; it is {shown}")


def stem(path: Path) -> str:
    return next(path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix))


def benchmark_of(path: Path) -> tuple[str, Benchmark]:
    """(the name as the file has it, the benchmark). Raises SystemExit if the file names none."""
    from sapo_vl.benchmarks import BENCHMARKS

    known = {name: name for name in BENCHMARKS} | ALIASES
    found = [name for name in known if f"{stem(path)}_".startswith(f"{name}_")]
    if not found:
        raise SystemExit(f"{path.name}: begins with the name of no benchmark; known: {', '.join(sorted(known))}")
    name = max(found, key=len)
    return name, BENCHMARKS[known[name]]


def ident(benchmark: Benchmark, cells: Cells) -> str:
    return "-".join(str(cells.get(name)) for name in IDENTS.get(benchmark.name, ("id",)))


def item_name(benchmark: Benchmark, cells: Cells) -> str | None:
    """What tells an item apart: `ident`, or the id of a response whose row is elsewhere; None if it has neither."""
    name = ident(benchmark, cells)
    if "None" not in name.split("-"):
        return name
    return None if cells.get("id") is None else str(cells["id"])


def problem_of(benchmark: Benchmark, index: int, stored: Cells) -> Problem:
    """The one problem of a row. Raises ValueError as its reader does, or if the row has another number of problems."""
    from PIL import Image

    from sapo_vl.benchmarks import Row

    names = RENAMED.get(benchmark.name, {})
    renamed = {ours: stored[theirs] for ours, theirs in names.items() if theirs in stored}
    cells = {**FILLED.get(benchmark.name, {}), **stored, **renamed}
    for column, values in VALUES.get(benchmark.name, {}).items():
        cells[column] = values.get(str(cells.get(column)), cells.get(column))
    pictures = [name for name in benchmark.columns if "image" in name and name not in cells]
    cells |= {name: [BLANK] if name.endswith("s") else BLANK for name in pictures}
    if "image_1" in pictures:  # as many as the set has columns for
        cells |= {f"image_{number}": BLANK for number in range(2, 8) if f"image_{number}" not in cells}
    blank = Image.new("RGB", (8, 8), "white")
    problems = list(benchmark.problems(Row(index=index, cells=cells, image=lambda cell: blank)))
    if len(problems) != 1:
        raise ValueError(f"the row has {len(problems)} problems")
    return problems[0]


def job(problem: Problem, text: str) -> Job:
    x = RewardInput(
        text=text, num_tokens=1, max_tokens=2, finish="stop", id=problem.id, answer=problem.answer, meta=problem.meta
    )
    return Job(problem.reward, x)


def scored(jobs: Sequence[Job], plan: Plan, workers: int) -> list[Result]:
    """Results in the order of the jobs."""
    slow = [at for at, job in enumerate(jobs) if job.own not in IN_PROCESS]
    results: dict[int, Result] = {}
    if slow:
        with RewardPool(plan, workers) as pool:
            results = dict(zip(slow, pool.run([jobs[at] for at in slow]), strict=True))
    return [results.get(at) or score_one(plan, job) for at, job in enumerate(jobs)]


def golds_of(benchmark: Benchmark, rows: Sequence[Cells], plan: Plan, workers: int) -> Golds:
    """Every gold of the rows as an answer."""
    from sapo_vl.benchmarks import LeftOut

    found, jobs, ids = Golds(n=len(rows)), [], []
    for index, row in enumerate(rows):
        try:
            problem = problem_of(benchmark, index, row)
        except ValueError as reason:
            left = "left out: " if isinstance(reason, LeftOut) else ""
            found.refused[ident(benchmark, row)] = f"{left}{reason}"
            continue
        jobs.append(job(problem, f"<answer>{problem.answer}</answer>"))
        ids.append(ident(benchmark, row))
    for name, result in zip(ids, scored(jobs, plan, workers), strict=True):
        if result.score is None:
            found.unscorable[name] = f"{result.status}: {result.detail}"
        elif result.score < 1:
            found.unequal[name] = result.detail
    return found


def verdicts_of(
    benchmark: Benchmark, responses: Sequence[Cells], rows: Mapping[str, Cells], plan: Plan, workers: int
) -> Verdicts:
    """Published responses, judged by our rule."""
    found, jobs, boxed_asked = Verdicts(), [], []
    for index, line in enumerate(responses):
        name = item_name(benchmark, line) or "None"
        try:
            problem = problem_of(benchmark, index, {**rows.get(name, {}), **line})
        except ValueError as reason:
            found.refused.append(f"{name}: {reason}")
            continue
        response = line["response"] or ""
        jobs.append(job(problem, response))
        found.ids.append(name)
        found.official.append(float(line["official"]))
        found.boxed.append("\\boxed" in response)
        found.answers.append((problem.answer, last_answer(response) or ""))
        boxed_asked.append("\\boxed" in str(problem.messages))
    found.ours, found.asks_box = scored(jobs, plan, workers), any(boxed_asked)
    return found


def kind(official: float, ours: Result, gold: str, answer: str) -> str:
    """Who is right where the verdicts differ, as our rule has it, and why."""
    if ours.score is None:
        return f"not scored by us ({ours.status}: {ours.detail[:80]})"
    if official > ours.score:
        return f"official right, ours wrong: {ours.detail}"
    how = "another spelling of the gold, or its letter or text"
    if bare(answer).casefold() == bare(gold).casefold():
        how = "the gold as it stands"
    elif typeset(answer).casefold() == typeset(gold).casefold():
        how = "the gold, set in another way"
    return f"official wrong, ours right: {how}"


def differs(official: float, ours: Result) -> bool:
    return ours.score is None or abs(official - ours.score) > 0.5


def share_rows(name: str, found: Verdicts) -> list[tuple[str, str, int, float, float, float]]:
    """(file, of which, n, official, ours, share that disagrees): of all, and of those with a box where that differs."""
    subsets = {"all": [True] * len(found.ids)}
    if found.asks_box and any(found.boxed) and not all(found.boxed):
        subsets["with a box"] = found.boxed
    table = []
    for which, chosen in subsets.items():
        pairs = [pair for pair, has in zip(zip(found.official, found.ours, strict=True), chosen, strict=True) if has]
        scored = [(official, ours.score) for official, ours in pairs if ours.score is not None]
        n = max(len(scored), 1)
        means = [sum(verdict[side] for verdict in scored) / n for side in (0, 1)]
        table.append((name, which, len(pairs), *means, sum(differs(*pair) for pair in pairs) / max(len(pairs), 1)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=2, help="of each kind of disagreement")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds a response may take to score")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if not args.folder.is_dir():
        raise SystemExit(f"{args.folder} is no folder")
    files = sorted(path for path in args.folder.iterdir() if path.name.endswith(SUFFIXES))
    if not files:
        raise SystemExit(f"{args.folder} holds no file {' or '.join('*' + suffix for suffix in SUFFIXES)}")
    verdicts: dict[str, Verdicts] = {}
    golds: dict[str, Golds] = {}
    for path in files:
        name, benchmark = benchmark_of(path)
        content = list(lines(path, benchmark))
        plan = Plan({OWN: 1.0}, benchmark.params, max(args.timeout, benchmark.timeout_s))
        if not content:
            raise SystemExit(f"{path.name} has no lines")
        if not any("response" in line for line in content):
            golds[stem(path)] = golds_of(benchmark, content, plan, args.workers)
            continue
        checked(path, content)
        beside = [path.with_name(f"{name}_rows{suffix}") for suffix in SUFFIXES]
        rows = {ident(benchmark, row): row for other in beside if other.exists() for row in lines(other, benchmark)}
        found = verdicts[stem(path)] = verdicts_of(benchmark, content, rows, plan, args.workers)
        if not found.ids:
            have = "its rows are" if rows else f"{' or '.join(other.name for other in beside)} must be"
            raise SystemExit(f"{path.name}: no line makes a problem ({found.refused[0][:200]}); {have} beside it")
    print(report(verdicts, golds, args.samples))
    if args.json:
        args.json.write_text(json.dumps(as_data(verdicts, golds), indent=1) + "\n", encoding="utf-8")


def report(verdicts: Mapping[str, Verdicts], golds: Mapping[str, Golds], samples: int) -> str:
    out = ["| responses | of which | n | official | ours | disagree |", "|---|---|---|---|---|---|"]
    for name, found in verdicts.items():
        for file, which, n, official, ours, share in share_rows(name, found):
            out.append(f"| {file} | {which} | {n} | {official:.4f} | {ours:.4f} | {share:.2%} |")
    out += ["", "| golds | rows | refused | unscorable | not equal to themselves |", "|---|---|---|---|---|"]
    for name, found in golds.items():
        out.append(f"| {name} | {found.n} | {len(found.refused)} | {len(found.unscorable)} | {len(found.unequal)} |")
    for name, found in verdicts.items():
        out += ["", f"{name}: {len(found.refused)} lines refused {found.refused[:samples]}"]
        for what, members in kinds_of(found).items():
            out.append(f"  {len(members)} x {what}")
            for at in members[:samples]:
                gold, answer = found.answers[at]
                out.append(f"    {found.ids[at]}: gold {gold[:60]!r}, answer {answer[:100]!r}")
    for name, found in golds.items():
        for what, ids in (("refused", found.refused), ("unscorable", found.unscorable), ("unequal", found.unequal)):
            out += ["", f"{name}, {what}:"] * bool(ids) + [f"  {key}: {reason[:160]}" for key, reason in ids.items()]
    return "\n".join(out)


def kinds_of(found: Verdicts) -> dict[str, list[int]]:
    """Kind of disagreement -> places of its items, the most frequent kind first."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for at, (official, ours) in enumerate(zip(found.official, found.ours, strict=True)):
        if differs(official, ours):
            kinds[kind(official, ours, *found.answers[at])].append(at)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def as_data(verdicts: Mapping[str, Verdicts], golds: Mapping[str, Golds]) -> dict[str, Any]:
    columns = ("file", "of_which", "n", "official", "ours", "disagree")
    return {
        "responses": [
            dict(zip(columns, row, strict=True)) for name, v in verdicts.items() for row in share_rows(name, v)
        ],
        "disagreements": {
            name: {what: [found.ids[at] for at in members] for what, members in kinds_of(found).items()}
            for name, found in verdicts.items()
        },
        "statuses": {name: dict(Counter(result.status for result in v.ours)) for name, v in verdicts.items()},
        "golds": {name: vars(found) for name, found in golds.items()},
    }


if __name__ == "__main__":
    main()
