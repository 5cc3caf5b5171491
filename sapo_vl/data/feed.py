"""Problems become prompts in the training loop: exact task quotas, bad rows replaced and counted."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from sapo_vl.data.problem_set import BadRow, BadRows, ProblemSet
from sapo_vl.data.rows_ahead import RowsAhead
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.distributed import World
from sapo_vl.model.chat import Chat
from sapo_vl.model.prompt_errors import PromptError
from sapo_vl.types import Problem, Prompt

log = logging.getLogger(__name__)


class ProblemFeed:
    """Batches of prompts. All ranks walk the same sampler; each takes its own contiguous share of a batch.

    Bad rows are counted over all ranks, batch by batch, so `bad_rows` is the same on every rank and for any number
    of ranks.
    """

    def __init__(
        self,
        problems: ProblemSet,
        sampler: QuotaSampler,
        chat: Chat,
        max_bad_share: float,
        world: World,
        *,
        row_tokens: int = 0,
        ahead: bool = False,
    ) -> None:
        """`row_tokens`: every row must have a solution that can be imitated, with its prompt of at most so many tokens;
        0 = none need have one. `ahead`: `prepare` reads rows in a thread, with a tokenizer of its own."""
        if sampler.batch_size % world.size:
            raise ValueError(
                f"a batch of {sampler.batch_size} prompts cannot be shared equally by {world.size} ranks; "
                "make it a multiple of the number of ranks"
            )
        self.problems, self.sampler, self.chat, self.world = problems, sampler, chat, world
        self.row_tokens = row_tokens
        self.bad_rows = BadRows(max_bad_share)
        self._ahead = RowsAhead(functools.partial(_read, problems, chat.twin(), row_tokens)) if ahead else None

    def prepare(self) -> None:
        """Begins to read this rank's rows of the next batch, as it would be now, and returns at once.

        It changes nothing but when they are read: `next` and `further` take what is there and read the rest.
        """
        if self._ahead is not None:
            self._ahead.expect(self._mine(self.sampler.peek()))

    def close(self) -> None:
        """Ends the reading ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def next(self) -> list[Prompt]:
        """This rank's prompts of the next batch. All ranks must call it together.

        A row that cannot be read or tokenised is counted and another row of its task stands in, so quotas hold.
        Raises TooManyBadRows, on all ranks, past the configured share.
        """
        batch = next(self.sampler)
        return self._read(batch, self._mine(batch))

    def _mine(self, batch: list[int]) -> list[int]:
        share = len(batch) // self.world.size
        return batch[self.world.rank * share : (self.world.rank + 1) * share]

    def further(self, tasks: Sequence[str]) -> list[Prompt]:
        """The next prompts of these tasks for this rank, one each. All ranks must call it together, each with its own.

        Rows are dealt in the order of the ranks: they are those of one rank that asks for all. Bad rows as in `next`.
        """
        shares = self.world.gather(list(tasks))
        rows = self.sampler.further([task for share in shares for task in share])
        start = sum(map(len, shares[: self.world.rank]))
        return self._read(rows, rows[start : start + len(tasks)])

    def _read(self, batch: list[int], mine: list[int]) -> list[Prompt]:
        """The prompts of this rank's rows `mine` of a batch."""
        bad: list[str] = []
        prompts: list[Prompt] = []
        for row in mine:
            prompt = self._prompt(row, batch, bad)
            if prompt is None:
                break
            prompts.append(prompt)
        self._count(len(prompts) + len(bad), bad)
        return prompts

    def _prompt(self, row: int, batch: list[int], bad: list[str]) -> Prompt | None:
        """The prompt of a row, or of one that stands in for it; what was bad goes to `bad`.

        None if more rows were bad than the batch has, and the rule says stop whatever the other ranks meet: data
        without a readable row would otherwise be read to its end first.
        """
        candidate, attempt = row, 0
        while True:
            found = self._ahead.take(candidate) if self._ahead is not None else None
            prompt, wrong = found or _read(self.problems, self.chat, self.row_tokens, candidate)
            if prompt is not None:
                return prompt
            log.warning("skipping %s", wrong)
            bad.append(str(wrong))
            if len(bad) > len(batch) and self.bad_rows.too_many(seen=len(batch) + len(bad), bad=len(bad)):
                return None
            candidate = self.sampler.spare(row, attempt, exclude=batch)
            attempt += 1

    def _count(self, seen: int, bad: list[str]) -> None:
        """Adds what all ranks met of a batch, in the order of the batch."""
        all_seen, all_bad = self.world.sum([seen, len(bad)])
        in_words = [text for part in self.world.gather(bad) for text in part] if all_bad else []
        self.bad_rows.add(int(all_seen), in_words)
        self.bad_rows.check()

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_dict(), "bad_rows": self.bad_rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.bad_rows.load_state_dict(state["bad_rows"])


def _read(problems: ProblemSet, chat: Chat, row_tokens: int, row: int) -> tuple[Prompt | None, BadRow | None]:
    return read_prompt(problems, row, chat, row_tokens=row_tokens)


def read_prompt(
    problems: ProblemSet,
    row: int,
    chat: Chat,
    *,
    change: Callable[[Problem], Problem] | None = None,
    row_tokens: int = 0,
) -> tuple[Prompt | None, BadRow | None]:
    """The prompt of a row, or why there is none: the one way from a row to a prompt.

    Args:
        change: made of the problem before it becomes a prompt, such as its blank twin.
        row_tokens: as in `ProblemFeed`.
    """
    try:
        problem = problems.get(row)
    except BadRow as bad:
        return None, bad
    try:
        if row_tokens:
            chat.check_solution(problem)
        prompt = chat.prompt(change(problem) if change else problem)
        if row_tokens:
            chat.check_row(prompt, row_tokens)
        return prompt, None
    except PromptError as error:
        return None, BadRow(row, problem.id, str(error), error.kind)
