"""Signs that a run goes wrong, looked for in its metrics after every step: what each is, from when on, and what to do.

`SIGNS` is all there is to it. A sign is a pure function of the rows of metrics.jsonl; `Notices` tells each once when it
begins and once when it is over. docs/metrics.md has the same table.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

log = logging.getLogger(__name__)
Row = Mapping[str, Any]

FIRST = 10  # training rows that say how the run began
LATEST = 30  # training rows that a sign looks at
QUIET = 5  # rows without the sign until it is over: one that flickers is told once

DEAD, DEAD_STEPS = 0.95, 3
ZERO_STEPS = 5
ENTROPY, ENTROPY_SHARE = 0.05, 0.5
LENGTH_FACTOR = 2.0
TRUNCATED = 0.2
GAP, GAP_FACTOR = 0.01, 3.0
SPIKE_FACTOR, SPIKES = 5.0, 2
TASK_SHARE = 0.95
BLANK_RISE = 0.05
# Below which median of f'(r) too much of a sign's gradient is held back, by loss. A clip of whole responses is shut for
# half of them as a rule.
GATE_BOUNDS = {
    "sapo": 0.9,
    "sapo_auto": 0.9,
    "grpo": 0.8,
    "dapo": 0.8,
    "dr_grpo": 0.8,
    "gspo": 0.1,
    "gspo_token": 0.1,
    "vespo": 0.1,
}
OTHER_GATE_BOUND = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What signs are looked for in: rows of metrics.jsonl in order, each with what it has."""

    first: Sequence[Row]  # up to FIRST training rows, those that the run began with
    last: Sequence[Row]  # up to LATEST training rows, the newest at the end; may share some with `first`
    steps: int  # training rows in all
    evals: Sequence[Row]  # every evaluation
    gate_bound: float = OTHER_GATE_BOUND

    def values(self, name: str, count: int) -> list[float]:
        """Of the last `count` training rows, those that have a number."""
        return _numbers(self.last[-count:], name)

    def began(self, name: str) -> list[float]:
        """Of the first FIRST training rows, once as many have come after them; else []."""
        return _numbers(self.first, name) if self.steps >= 2 * FIRST else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One line of the table."""

    name: str
    when: str  # the threshold in words
    advice: str
    look: Callable[[Seen], str]  # what was found, with its numbers; "" = nothing


def all_groups_dead(seen: Seen) -> str:
    shares = seen.values("groups/dead_share", DEAD_STEPS)
    if len(shares) < DEAD_STEPS or min(shares) < DEAD:
        return ""
    share = "all" if min(shares) == 1 else f"{min(shares):.0%} or more"
    return f"{share} of the groups taught nothing in {DEAD_STEPS} steps in a row"


def zero_reward(seen: Seen) -> str:
    rows = seen.last[-ZERO_STEPS:]
    names = ("reward/mean", "reward/std", "reward/part/format")
    found = len(rows) == ZERO_STEPS and all(row.get(name) == 0 for row in rows for name in names)
    return f"every reward and every format part of {ZERO_STEPS} steps was 0" if found else ""


def entropy_collapse(seen: Seen) -> str:
    now, began = seen.values("entropy/mean", FIRST), seen.began("entropy/mean")
    found = now and began and median(now) < min(ENTROPY, ENTROPY_SHARE * median(began))
    return f"entropy is down to {median(now):.3g} nats a token, from {median(began):.3g}" if found else ""


def length_explosion(seen: Seen) -> str:
    lengths = seen.values("length/mean", LATEST)
    before, now = lengths[:5], lengths[-5:]
    if len(lengths) < 10 or median(now) <= LENGTH_FACTOR * median(before):
        return ""
    return f"responses grew from {median(before):.0f} to {median(now):.0f} tokens in {len(lengths)} steps"


def truncated(seen: Seen) -> str:
    shares = seen.values("length/truncated_share", 5)
    found = len(shares) == 5 and fmean(shares) > TRUNCATED
    return f"{fmean(shares):.0%} of the responses of 5 steps were cut at the token limit" if found else ""


def engine_gap(seen: Seen) -> str:
    now, began = seen.values("mismatch/gap_mean", FIRST), seen.began("mismatch/gap_mean")
    found = now and began and median(now) > max(GAP, GAP_FACTOR * median(began))
    return f"trainer and engine are {median(now):.3g} nats a token apart, from {median(began):.3g}" if found else ""


def gate_low(seen: Seen) -> str:
    found = []
    for sign in ("pos", "neg"):
        gates = seen.values(f"gate/{sign}/mean", FIRST)
        if len(gates) == FIRST and median(gates) < seen.gate_bound:
            found.append(f"gate/{sign}/mean is {median(gates):.2f}, below {seen.gate_bound:g}")
    return " and ".join(found)


def grad_spikes(seen: Seen) -> str:
    norms = seen.values("grad_norm/max", LATEST)
    if len(norms) < 15 or median(norms) == 0:
        return ""
    spikes = [norm for norm in norms[-10:] if norm > SPIKE_FACTOR * median(norms)]
    if len(spikes) < SPIKES:
        return ""
    return f"{len(spikes)} of 10 steps had a gradient norm of up to {max(spikes):.3g}, usual is {median(norms):.3g}"


def one_task(seen: Seen) -> str:
    prefix = "advantage/share/"
    all_shares = [{name: row[name] for name in row if name.startswith(prefix)} for row in seen.last]
    rows = [shares for shares in all_shares if len(shares) > 1][-10:]
    if len(rows) < 10:
        return ""
    names = sorted({name for shares in rows for name in shares})
    share, name = max((fmean(shares.get(name, 0.0) for shares in rows), name) for name in names)
    if share <= TASK_SHARE:
        return ""
    return f"task {name.removeprefix(prefix)!r} had {share:.0%} of the advantage of 10 steps"


def blank_image_rises(seen: Seen) -> str:
    blank, limits = "eval/blank_image/all", "eval/blank_image/all/ci95"
    rows = [row for row in seen.evals if row.get(blank) is not None and row.get(limits)]
    mode = next((m for m in ("eval/sampled/all", "eval/greedy/all") if rows and rows[0].get(m) is not None), "")
    rows = [row for row in rows if row.get(mode) is not None]
    if len(rows) < 2:
        return ""
    rise, with_image = (rows[-1][name] - rows[0][name] for name in (blank, mode))
    apart = rows[-1][limits][0] > rows[0][blank] and rows[0][limits][1] < rows[-1][blank]
    found = apart and rise >= BLANK_RISE and rise >= with_image / 2 > 0
    return f"accuracy without the image rose by {rise:.3f}, with it by {with_image:.3f}" if found else ""


SIGNS: tuple[Sign, ...] = (
    Sign(
        name="all_groups_dead",
        when=f"`groups/dead_share` at least {DEAD:g} in {DEAD_STEPS} steps in a row",
        advice="nothing is learned: choose problems that some responses solve and some do not (sapo-vl data "
        "difficulty), or sample more responses (rollout.group_size)",
        look=all_groups_dead,
    ),
    Sign(
        name="zero_reward",
        when=f"`reward/mean`, `reward/std` and `reward/part/format` are 0 in {ZERO_STEPS} steps in a row",
        advice="no response has the form that is asked for: does the question ask for it, or does the chat template "
        "open <think> (the start of the run says so)? Read a few in rollouts/",
        look=zero_reward,
    ),
    Sign(
        name="entropy_collapse",
        when=f"`entropy/mean`, median of {FIRST} steps, below {ENTROPY:g} nats and below {ENTROPY_SHARE:g} times "
        f"that of the first {FIRST} steps",
        advice="nothing is tried any more: go back to an older checkpoint with a lower optim.lr or fewer "
        "batch.mini_batches; look whether one answer is given to everything",
        look=entropy_collapse,
    ),
    Sign(
        name="length_explosion",
        when=f"`length/mean`, median of 5 steps, above {LENGTH_FACTOR:g} times that of the first 5 of the last "
        f"{LATEST}",
        advice="read the longest responses in rollouts/: if they repeat themselves, add the rewards overlong and "
        "repetition; if not, rollout.max_new_tokens must have room for them",
        look=length_explosion,
    ),
    Sign(
        name="truncated",
        when=f"`length/truncated_share`, mean of 5 steps, above {TRUNCATED:g}",
        advice="what is cut off has no answer and counts as wrong: raise rollout.max_new_tokens, or add the reward "
        "overlong",
        look=truncated,
    ),
    Sign(
        name="engine_gap",
        when=f"`mismatch/gap_mean`, median of {FIRST} steps, above {GAP:g} nats and above {GAP_FACTOR:g} times that "
        f"of the first {FIRST} steps",
        advice="the engine samples from another law than is trained (docs/mismatch.md): set a mismatch.correction, or "
        "replay=r3 for a mixture of experts",
        look=engine_gap,
    ),
    Sign(
        name="gate_low",
        when=f"`gate/pos/mean` or `gate/neg/mean`, median of {FIRST} steps, below {GATE_BOUNDS['sapo']:g} for SAPO "
        f"(times `target_gate`, if set), {GATE_BOUNDS['grpo']:g} for clips of tokens, {GATE_BOUNDS['gspo']:g} for "
        f"gates of responses, {OTHER_GATE_BOUND:g} for other losses",
        advice="the policy moves so far in a step that much of the gradient is held back: fewer batch.mini_batches, a "
        "lower optim.lr, or rollout.staleness=0",
        look=gate_low,
    ),
    Sign(
        name="grad_spikes",
        when=f"`grad_norm/max` above {SPIKE_FACTOR:g} times its median of {LATEST} steps in at least {SPIKES} of 10 "
        "steps",
        advice="single batches pull the weights about: look at the rollouts of these steps and at ratio/max; lower "
        "optim.lr or optim.clip",
        look=grad_spikes,
    ),
    Sign(
        name="one_task",
        when=f"the largest `advantage/share/*`, mean of 10 steps with two tasks or more, above {TASK_SHARE:g}",
        advice="groups of the other tasks are dead (reward/task/* says whether too easy or too hard): change their "
        "problems, or data.quotas",
        look=one_task,
    ),
    Sign(
        name="blank_image_rises",
        when=f"`eval/blank_image/all` above its first value by at least {BLANK_RISE:g}, by more than either "
        "interval, and by at least half of what the accuracy with images rose",
        advice="what is learned does not need the image: look for answers that can be guessed from the question, and "
        "at how they are spread",
        look=blank_image_rises,
    ),
)
ADVICE = {sign.name: sign.advice for sign in SIGNS}


def gate_bound(run_config: Mapping[str, Any]) -> float:
    """For the loss of a run's config as plain JSON."""
    loss = run_config.get("loss") or {}
    wanted = (loss.get("params") or {}).get("target_gate") or 1.0
    return GATE_BOUNDS.get(loss.get("name", "sapo"), OTHER_GATE_BOUND) * wanted


@dataclass
class _Lit:
    """A sign that was on."""

    first: int  # step of the first row that has it, and of the last
    last: int
    rows: int = 0  # that have it
    quiet: int = 0  # rows since it was last found
    on: bool = True


class Notices:
    """The signs of one run. `gate_bound`: see `Seen`."""

    def __init__(self, gate_bound: float = OTHER_GATE_BOUND, rows: Iterable[Row] = ()) -> None:
        """rows: the lines of metrics.jsonl that the run goes on from. What they say was on is not told again."""
        self._gate_bound = gate_bound
        self._first: list[Row] = []
        self._last: deque[Row] = deque(maxlen=LATEST)
        self._evals: list[Row] = []
        self._steps = 0
        self._lit: dict[str, _Lit] = {}
        for row in rows:
            if self._take(row):
                self._mark(row["step"], dict.fromkeys(row.get("notices", ()), ""), quiet=1, tell=False)

    def add(self, row: Row) -> list[str]:
        """Takes in a row; the names of the signs that are on now, in the order of SIGNS. Tells what begins and ends."""
        if not self._take(row):
            return []
        seen = Seen(
            first=self._first,
            last=list(self._last),
            steps=self._steps,
            evals=self._evals,
            gate_bound=self._gate_bound,
        )
        found = {sign.name: text for sign in SIGNS if (text := sign.look(seen))}
        self._mark(row["step"], found, quiet=QUIET, tell=True)
        return [sign.name for sign in SIGNS if sign.name in self._lit and self._lit[sign.name].on]

    def summary(self) -> dict[str, dict[str, int]]:
        """By name, of every sign that was on: step of the first and of the last row that has it, and how many have."""
        return {name: {"first": lit.first, "last": lit.last, "rows": lit.rows} for name, lit in self._lit.items()}

    def _take(self, row: Row) -> bool:
        """Whether signs are looked for in rows of this phase."""
        if row["phase"] == "train":
            self._steps += 1
            self._last.append(row)
            if len(self._first) < FIRST:
                self._first.append(row)
        elif row["phase"] == "eval":
            self._evals.append(row)
        return row["phase"] in ("train", "eval")

    def _mark(self, step: int, found: Mapping[str, str], *, quiet: int, tell: bool) -> None:
        """found: sign -> what was found. One that is on and was not found in `quiet` rows in a row is over."""
        for name, text in found.items():
            lit = self._lit.setdefault(name, _Lit(first=step, last=step, on=False))
            if tell and not lit.on:
                log.warning("step %d: notice %s: %s; %s", step, name, text, ADVICE[name])
            lit.on, lit.quiet = True, 0
        for name, lit in self._lit.items():
            if lit.on and name not in found:
                lit.quiet += 1
                lit.on = lit.quiet < quiet
                if tell and not lit.on:
                    log.warning("step %d: notice %s is over", step, name)
            if lit.on:
                lit.last, lit.rows = step, lit.rows + 1


def _numbers(rows: Iterable[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]
