"""Asking items: prompts on every rank, responses from the engine, verdicts, records on the main rank."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sapo_vl.data.problem_set import BLANK_SUFFIX, blank_twin
from sapo_vl.evaluation.items import Item, Items, prompt_hash
from sapo_vl.evaluation.pictures import PictureFolder
from sapo_vl.evaluation.records import UNREADABLE, Record, make_record
from sapo_vl.evaluation.rules import Judged, Judges
from sapo_vl.model.prompt_errors import PromptError
from sapo_vl.rollout import SamplingParams
from sapo_vl.session import SamplingSession
from sapo_vl.types import Problem, Prompt, RolloutGroup

log = logging.getLogger(__name__)

# Engines that are sharded over ranks need equally many prompts on each: where a rank has too few, it asks this.
_FILLER = Problem(id="filler", task="filler", messages=({"role": "user", "content": "."},))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What stays the same while a benchmark is asked."""

    session: SamplingSession
    judges: Judges
    items: Items
    params: SamplingParams
    batch: int  # responses at a time on a rank
    blank: bool = False  # ask the items' twins with blank images
    pictures: PictureFolder | None = None  # where small copies of the pictures go

    def problem(self, item: Item) -> tuple[Problem, Problem]:
        """(what is asked, what it is scored as): the same, but for blank images in the control."""
        problem = self.items.problem(item.row, item.number)
        asked = blank_twin(problem) if self.blank else problem
        return asked, dataclasses.replace(asked, images=problem.images)


def ask(asking: Asking, pending: Sequence[Item], write: Callable[[list[Record]], None]) -> None:
    """Asks the items in order; `write` gets the records of one batch after another, in the order of the items.

    All ranks call it together, with the same items. `write` is called on the main rank.
    """
    world = asking.session.world
    window = world.size * max(1, asking.batch // asking.params.n)
    for start in range(0, len(pending), window):
        part = pending[start : start + window]
        each = -(-len(part) // world.size)
        shares = world.gather(_ask_batch(asking, part[world.rank * each : (world.rank + 1) * each], each))
        if world.is_main:
            if asking.pictures:
                asking.pictures.write({name: data for _, copies in shares for name, data in copies.items()})
            write([record for records, _ in shares for record in records])
        log.info("%s: %d of %d items", asking.items.benchmark.name, start + len(part), len(pending))


def _ask_batch(asking: Asking, items: Sequence[Item], each: int) -> tuple[list[Record], dict[str, bytes]]:
    """(records, new copies of pictures) of this rank's items of a batch, in which every rank asks `each` prompts."""
    chat, name = asking.session.chat, asking.items.benchmark.name
    prompts: list[Prompt] = []
    records: dict[str, Record] = {}
    places: dict[str, Item] = {}
    to_score: dict[str, Problem] = {}
    copies: dict[str, bytes] = {}
    for item in items:
        try:
            problem, scored_as = asking.problem(item)
        except ValueError as error:  # it could be read a moment ago: a file is gone
            log.warning("%s leaves out item %s: %s", name, item.id, error)
            id = f"{item.id}{BLANK_SUFFIX}" if asking.blank else item.id
            places[id] = item
            unread = Problem(id=id, task=item.task, messages=(), reward=item.reward)
            records[id] = _record(asking, unread, item, skipped=UNREADABLE)
            continue
        places[problem.id], to_score[problem.id] = item, scored_as
        copies |= asking.pictures.new(problem, item.prompt) if asking.pictures else {}
        try:
            prompts.append(chat.prompt(problem))
        except PromptError as error:
            log.warning("%s leaves out %s", name, error)
            records[problem.id] = _record(asking, problem, item, skipped=error.kind)
    asked = prompts + [chat.prompt(_FILLER)] * (each - len(prompts))
    groups = asking.session.rollouts.generate(asked, asking.params)[: len(prompts)]
    answered = [_of(group, to_score[group.prompt.problem.id]) for group in groups]
    for before, judged in zip(groups, asking.judges.judge(answered, asking.params.max_new_tokens), strict=True):
        problem = before.prompt.problem
        records[problem.id] = _record(asking, problem, places[problem.id], judged)
    return [records[id] for id in places], copies


def _of(group: RolloutGroup, problem: Problem) -> RolloutGroup:
    """The group as answers to `problem`."""
    return dataclasses.replace(group, prompt=dataclasses.replace(group.prompt, problem=problem))


def _record(asking: Asking, problem: Problem, item: Item, judged: Judged | None = None, skipped: str = "") -> Record:
    return make_record(
        asking.items.benchmark.name,
        problem,
        (item.row, item.number),
        prompt_hash(problem) if asking.blank else item.prompt,
        asking.judges.rules(problem),
        rollouts=judged.group.rollouts if judged else (),
        others=judged.other.rollouts if judged and judged.other else (),
        skipped=skipped,
    )
