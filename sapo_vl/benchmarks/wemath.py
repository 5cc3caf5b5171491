r"""We-Math testmini (arXiv 2407.01284): 525 problems of two or three steps, each step a question too.

Rows: ID (shared by a problem and its steps), key ("2steps_1", "2steps_2", "2steps_multi"; "3steps_1" ...
"3steps_multi"), question, option ("A. 4; B. 5; ..."), answer (a letter), image_path (the picture), knowledge concept.
The usual prompt is question and options; here with \boxed{}.

Figures, from section 3.3 of the paper and its published code. Of each problem of several steps:

    IK insufficient knowledge      the problem is wrong, and a step is
    IG inadequate generalisation   the problem is wrong, all its steps are right
    CM complete mastery            the problem is right, and strict: all steps, loose: at least one step
    RM rote memorisation           the problem is right, and strict: a step is wrong, loose: all steps are

Every problem is in one of the four, strictly and loosely. `strict` and `loose` are CM + IG / 2 as shares of the
problems; IK, IG, CM and RM are shares, too. (The paper gives RM as a share of CM + RM: `rote_strict` and `rote_loose`,
left out if both are 0.) Problems of which a step or the whole was not asked are left out and counted (`incomplete`).
With k responses to each question the figures are those of the first responses, of the second, ..., averaged.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from sapo_vl.benchmarks.base import Benchmark, ItemScores, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, option_meta, shown, text
from sapo_vl.benchmarks.prompts import BOXED_LETTER, ask_about
from sapo_vl.benchmarks.tally import right, rounds
from sapo_vl.types import Problem

_KEY = re.compile(r"([23])steps_(multi|[123])")
_OPTION = re.compile(r"(?:^|[;\uff1b\n])\s*([A-Z])\s*[.\uff0e:]\s*")
WHOLE = "multi"


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, key = gold(row, "answer"), str(row.cells.get("key"))
    options = _options(text(row, "option"))
    if answer not in options:
        raise ValueError(f"answer is {answer[:40]!r}, none of the letters {', '.join(options)}")
    if not _KEY.fullmatch(key):
        raise ValueError(f"key is {key[:40]!r}, not like '2steps_1' or '3steps_multi'")
    yield Problem(
        id=f"wemath-{ident(row, 'ID')}-{key}",
        task="wemath",
        messages=ask_about(1, f"{text(row, 'question')}\n{shown(options)}", BOXED_LETTER),
        images=(row.image(row.cells.get("image_path")),),
        answer=answer,
        reward="choice",
        meta={"options": option_meta(options), "problem": ident(row, "ID"), "key": key}
        | grouped(key=key, concept=row.cells.get("knowledge concept")),
    )


def _options(cell: str) -> dict[str, str]:
    pieces = _OPTION.split(cell)
    options = dict(zip(pieces[1::2], map(str.strip, pieces[2::2]), strict=True))
    expected = [chr(ord("A") + i) for i in range(len(options))]
    if pieces[0].strip() or len(options) < 2 or list(options) != expected or len(pieces) != 2 * len(options) + 1:
        raise ValueError(f"option is {cell[:60]!r}, not like 'A. 4; B. 5'")
    return options


def mastery(items: Sequence[ItemScores]) -> dict[str, float]:
    """See the top of the file."""
    asked: dict[str, dict[str, ItemScores]] = defaultdict(dict)
    for item in items:
        asked[item.meta["problem"]][item.meta["key"]] = item
    complete = [parts for parts in map(_complete, asked.values()) if parts is not None]
    figures = {"problems": float(len(complete)), "incomplete": float(len(asked) - len(complete))}
    if not complete:
        return figures
    each = [_shares(complete, response) for response in rounds(items)]
    for name in ("IK", "IG", "CM_strict", "RM_strict", "CM_loose", "RM_loose"):
        figures[name] = sum(shares[name] for shares in each) / len(each)
    for rule in ("strict", "loose"):
        mastered, rote = figures[f"CM_{rule}"], figures[f"RM_{rule}"]
        figures[rule] = mastered + figures["IG"] / 2
        if mastered + rote:
            figures[f"rote_{rule}"] = rote / (mastered + rote)
    return figures


def _complete(by_key: Mapping[str, ItemScores]) -> tuple[ItemScores, list[ItemScores]] | None:
    """(the problem, its steps), or None if one of them was not asked."""
    for count in (2, 3):
        keys = [f"{count}steps_{step}" for step in (WHOLE, *range(1, count + 1))]
        if by_key.keys() == set(keys):
            whole, *steps = (by_key[key] for key in keys)
            return whole, steps
    return None


def _shares(complete: Sequence[tuple[ItemScores, list[ItemScores]]], response: int) -> dict[str, float]:
    counts = dict.fromkeys(("IK", "IG", "CM_strict", "RM_strict", "CM_loose", "RM_loose"), 0)
    for whole, steps in complete:
        known = [right(step, response) for step in steps]
        if not right(whole, response):
            counts["IG" if all(known) else "IK"] += 1
        else:
            counts["CM_strict" if all(known) else "RM_strict"] += 1
            counts["CM_loose" if any(known) else "RM_loose"] += 1
    return {name: count / len(complete) for name, count in counts.items()}


WEMATH = Benchmark(
    name="wemath",
    source="We-Math/We-Math",
    split="testmini",
    licence="unknown",
    columns=("ID", "key", "question", "option", "answer", "image_path"),
    problems=problems,
    metrics=mastery,
)
