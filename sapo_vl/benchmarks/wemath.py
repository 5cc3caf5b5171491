r"""We-Math testmini (arXiv 2407.01284): 525 problems of two or three steps, each step a question too.

Rows: ID (shared by a problem and its steps), key ("2steps_1", "2steps_2", "2steps_multi"; "3steps_1" ...
"3steps_multi"), question, option ("A. 4; B. 5; ..."), answer (a letter), image_path (the picture), knowledge concept.
The usual prompt is question and options; here with \boxed{}.

Options are read letter by letter: 10 of the 1740 rows have a ";" inside an option ("around point ;O.;B. ...") or none
before a letter, and are read by taking A, B, C, ... in turn; all ten, as the authors' repository has them, come out as
they are meant. A list in which a letter could stand in two places is refused.

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

from rewards.options import option_meta
from sapo_vl.benchmarks.base import Benchmark, ItemScores, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, shown, text
from sapo_vl.benchmarks.prompts import BOXED_LETTER, ask_about
from sapo_vl.benchmarks.tally import right, rounds
from sapo_vl.types import Problem

_KEY = re.compile(r"([23])steps_(multi|[123])")
_OPTION = re.compile(r"(?:^|[;\uff1b\n])\s*([A-Z])\s*[.\uff0e:]\s*")
_LOOSE = re.compile(r"(?<=\s)([A-Z])\s*[.\uff0e:]\s*")
WHOLE = "multi"
NONE_OF_THESE = "No correct answer"  # the last option of most rows, once under a letter too far


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
    """Options by letter. Raises ValueError if they cannot be told apart."""
    pieces = _OPTION.split(cell)
    options = dict(zip(pieces[1::2], map(str.strip, pieces[2::2]), strict=True))
    plain = not pieces[0].strip() and list(options) == _letters(len(options)) and len(pieces) == 2 * len(options) + 1
    found = options if plain and len(options) > 1 else _in_turn(cell)
    if len(found) < 2:
        raise ValueError(f"option is {cell[:60]!r}, not like 'A. 4; B. 5'")
    return found


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + i) for i in range(count)]


def _in_turn(cell: str) -> dict[str, str]:
    """Options where ";" stands within one or lacks before one: A, then the first B behind it, and so on.

    A letter behind a ";" goes before one behind a blank, which counts only where there is no other. {} if a letter has
    two such places, or an option is lost: letters that are left over, with a text behind them (but for a last
    NONE_OF_THESE).
    """
    after_mark = [match for match in _OPTION.finditer(cell) if _says_something(cell, match.end())]
    after_blank = [match for match in _LOOSE.finditer(cell) if _says_something(cell, match.end())]
    taken: list[re.Match[str]] = []
    while True:
        start, letter = (taken[-1].end() if taken else 0), _letters(len(taken) + 1)[-1]
        marks = [match for match in after_mark if match[1] == letter and match.start() >= start]
        loose = [match for match in after_blank if match[1] == letter and match.start() >= start]
        last_mark = max((match.start() for match in after_mark if match[1] > letter), default=0)
        # What only a blank parts must be followed by a later option, or nothing is parted by anything else.
        loose = [match for match in loose if match.start() < last_mark or len(after_mark) <= 1]
        found = marks or loose
        if not found:
            break
        if len(found) > 1:
            return {}
        taken.append(found[0])
    if not taken or cell[: taken[0].start()].strip():
        return {}
    left = [match for match in after_mark if match.start() > taken[-1].start()]
    if len(left) > 1 or any(cell[match.end() :].strip() != NONE_OF_THESE for match in left):
        return {}
    taken += left  # under the letter that it has
    ends = [*(match.start() for match in taken[1:]), len(cell)]
    return {match[1]: cell[match.end() : end].strip(" ;\uff1b\n\t") for match, end in zip(taken, ends, strict=True)}


def _says_something(cell: str, end: int) -> bool:
    """Whether a text follows, and not the next mark: "point ;O.;B. left" names a point."""
    return cell[end : end + 1] not in ("", ";", "\uff1b", "\n")


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
    licence="CC BY-NC 4.0",
    columns=("ID", "key", "question", "option", "answer", "image_path"),
    problems=problems,
    official="official_wemath",
    metrics=mastery,
)
