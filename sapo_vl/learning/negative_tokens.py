"""What an update does to the tokens that were not sampled, measured over the vocabulary before and after it.

SAPO (arXiv 2511.20347) Eq. 9, with z the logits, pi = softmax(z), y the sampled token:

    d (A log pi(y)) / d z_v  =  A (1 - pi(y)) if v = y,  -A pi(v) otherwise        in short  A (e_y - pi)

So with A < 0 the one sampled logit falls and all others rise. A step of size s along this, if logits were free:

    change of log pi(y)                s A q,  q = |e_y - pi|^2 = 1 - 2 pi(y) + sum_v pi(v)^2
    change of what the others have    -s A q pi(y)
    change of the entropy             -s A sum_v (e_y - pi)_v pi(v) (log pi(v) + H)

In a model logits share their weights: a token's logits also move with the gradients of all other tokens, of both
signs, and by the optimizer's scaling. `formula_step` is the s that fits best, `formula_share` how much of the change
of the logits it explains.

`NegativeTokens` measures the ordinary updates of a run, `isolated_step` one plain step on the tokens of one sign alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.policy import PolicyModule, Vocabulary

TOKENS_PER_SIGN = 64  # looked at in an update, on each rank: twice that, times the vocabulary, is held in float32
CHUNK = 16  # rows [CHUNK, V] that are worked on at a time, in float64
Sign = Literal["pos", "neg"]
SIGNS: dict[Sign, int] = {"pos": 1, "neg": -1}
COLUMNS = ("logprob", "mass", "entropy", "logits_rose", "probs_rose", "along", "formula_sq", "change_sq")
FIRST_ORDER = ("logprob", "mass", "entropy")


def token_changes(before: Tensor, after: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    """What became of the law at n tokens: [len(COLUMNS), n] float64, on the device of `before`.

    before, after: logits [n, V], divided by the temperature, -inf for banned ids; targets [n] the sampled ids;
    advantages [n]. Columns:
    logprob: change of the log-prob of the sampled token, in nats. mass: of the probability of all others together.
    entropy: in nats. logits_rose, probs_rose: the share of the others whose logit or probability rose.
    along, formula_sq, change_sq: c . f, f . f and c . c, with f = A (e_y - pi) before the update and c the change of
    the logits less its mean, since a common shift changes no probability.
    """
    parts = [slice(start, start + CHUNK) for start in range(0, len(targets), CHUNK)]
    columns = [_changes(before[p].double(), after[p].double(), targets[p], advantages[p].double()) for p in parts]
    return torch.cat([before.new_empty((len(COLUMNS), 0), dtype=torch.float64), *columns], dim=1)


def formula(before: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    """The first-order changes per unit of step size: [len(FIRST_ORDER), n] float64. Arguments as of token_changes."""
    parts = [slice(start, start + CHUNK) for start in range(0, len(targets), CHUNK)]
    columns = [_first_order(before[p].double(), targets[p], advantages[p].double()) for p in parts]
    return torch.cat([before.new_empty((len(FIRST_ORDER), 0), dtype=torch.float64), *columns], dim=1)


def chosen_tokens(mb: MicroBatch, per_sign: int = TOKENS_PER_SIGN) -> Tensor:
    """[n] int64 into the N response tokens: up to `per_sign` of each sign of A, spread evenly over those there are."""
    advantages = torch.repeat_interleave(mb.advantages, mb.lengths).cpu()
    picked = []
    for sign in SIGNS.values():
        (there,) = (advantages * sign > 0).nonzero(as_tuple=True)
        picked.append(there[torch.linspace(0, len(there) - 1, min(per_sign, len(there))).round().long()])
    return torch.cat(picked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The vocabulary at some response tokens of a micro-batch, at one moment."""

    job: Vocabulary
    logits: Tensor  # [n, V] float32, divided by the temperature


class NegativeTokens:
    """Statistics of ONE step. Make one per step and rank; every rank makes the same calls."""

    def __init__(self, temperature: float) -> None:
        """temperature: that of the sampling law."""
        self._temperature = temperature
        self._total = np.zeros((len(SIGNS), 1 + len(COLUMNS) + len(FIRST_ORDER)))

    def look(self, engine: PolicyEngine, micro_batches: Sequence[MicroBatch], filler: MicroBatch) -> Look:
        """Before an update of these micro-batches: one forward pass, of one of them, another one in every update.

        A rank without any runs `filler`, of which nothing is looked at: sharded engines communicate in every forward.
        """
        batch = micro_batches[engine.updates % len(micro_batches)] if micro_batches else filler
        tokens = chosen_tokens(batch) if micro_batches else torch.empty(0, dtype=torch.int64)
        job = Vocabulary(batch=batch.to(engine.world.device), tokens=tokens.to(engine.world.device))
        return Look(job=job, logits=self._logits(engine, job))

    def add(self, engine: PolicyEngine, before: Look) -> None:
        """After the update."""
        self._total += _sums(before, self._logits(engine, before.job))

    def reduce(self, world: World) -> dict[str, float]:
        """The statistics over all ranks and updates. Every rank must call it. A sign without tokens is left out.

        negative_tokens/{pos,neg}/..., by the sign of the token's A: tokens; logprob, mass, entropy, logits_rose,
        probs_rose: means of the columns of `token_changes`. formula_step: the step along f that fits the changes of
        the logits best, by least squares. formula_share: what share of their squares it explains, 0 to 1.
        logprob_formula, mass_formula, entropy_formula: the first-order means at that step.
        """
        total = world.sum(self._total.reshape(-1)).reshape(self._total.shape)
        return {f"negative_tokens/{name}": value for name, value in _values(total).items()}

    @torch.no_grad()
    def _logits(self, engine: PolicyEngine, job: Vocabulary) -> Tensor:
        engine.ds.eval()
        logits = engine.module(job, temperature=self._temperature)[0]
        engine.ds.train()
        return logits


def isolated_step(
    policy: PolicyModule, mb: MicroBatch, sign: Sign, *, size: float, temperature: float = 1.0
) -> dict[str, float]:
    """What one plain gradient step on sum_t A_t log pi(y_t), over the tokens of one sign alone, does to those of both.

    The step is as long as moves its tokens by `size` nats to first order, on average weighted by |A|. All tokens of the
    micro-batch are looked at. Names as of `NegativeTokens.reduce` without "negative_tokens/"; the weights are put back.

    Raises ValueError without a token of that sign, and for weights that are sharded or not float32: a small step is
    lost in half precision.
    """
    weights = [p for p in policy.parameters() if p.requires_grad]
    if odd := {(p.dtype, p.numel()) for p in weights if p.dtype != torch.float32 or p.numel() == 0}:
        raise ValueError(f"the weights must be whole and in float32, there are (dtype, size) {sorted(map(str, odd))}")
    advantages = torch.repeat_interleave(mb.advantages, mb.lengths)
    own = advantages * SIGNS[sign] > 0
    if not bool(own.any()):
        raise ValueError(f"the micro-batch has no token with A {'>' if sign == 'pos' else '<'} 0")
    training = policy.training
    policy.eval()
    logprobs, _ = policy(mb, temperature=temperature)
    gradient = torch.autograd.grad((advantages * logprobs)[own].sum(), weights, allow_unused=True)
    square = sum(float(g.double().square().sum()) for g in gradient if g is not None)
    lr = size * float(advantages[own].abs().sum()) / square  # sum of A times the change is lr * square
    job = Vocabulary(batch=mb, tokens=torch.arange(len(mb.targets), device=mb.targets.device))
    kept = [p.detach().clone() for p in weights]
    with torch.no_grad():
        before = Look(job=job, logits=policy(job, temperature=temperature)[0])
        for p, g in zip(weights, gradient, strict=True):
            p += 0.0 if g is None else lr * g
        after = policy(job, temperature=temperature)[0]
        for p, old in zip(weights, kept, strict=True):
            p.copy_(old)
    policy.train(training)
    return _values(_sums(before, after))


def _sums(before: Look, after: Tensor) -> np.ndarray:
    """[signs, 1 + columns] by the sign of A: tokens, and the sums of token_changes and of formula."""
    mb, tokens = before.job.batch, before.job.tokens
    targets, advantages = mb.targets[tokens], torch.repeat_interleave(mb.advantages, mb.lengths)[tokens]
    columns = torch.cat(
        [
            torch.ones_like(advantages, dtype=torch.float64)[None],
            token_changes(before.logits, after, targets, advantages),
            formula(before.logits, targets, advantages),
        ]
    )
    return np.stack([columns[:, advantages * sign > 0].sum(dim=1).cpu().numpy() for sign in SIGNS.values()])


def _values(total: np.ndarray) -> dict[str, float]:
    """Metrics by sign from the sums of _sums."""
    out: dict[str, float] = {}
    for sign, (n, *sums) in zip(SIGNS, total, strict=True):
        if n == 0:
            continue
        means = dict(zip(COLUMNS, sums, strict=False))
        along, formula_sq, change_sq = (means.pop(name) for name in ("along", "formula_sq", "change_sq"))
        step = along / formula_sq if formula_sq > 0 else 0.0
        values = {"tokens": n} | {name: v / n for name, v in means.items()}
        values |= {"formula_step": step, "formula_share": step * along / change_sq if change_sq > 0 else 0.0}
        values |= {f"{name}_formula": step * v / n for name, v in zip(FIRST_ORDER, sums[-3:], strict=True)}
        out |= {f"{sign}/{name}": float(v) for name, v in values.items()}
    return out


def _changes(before: Tensor, after: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    sampled, allowed = targets[:, None], torch.isfinite(before)
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    logprob = (new - old).gather(1, sampled)[:, 0]
    mass = -old.gather(1, sampled)[:, 0].exp() * torch.expm1(logprob)
    others = allowed.scatter(1, sampled, False)
    number = others.sum(1)
    change = torch.where(allowed, after - before, 0.0)
    shift = change.sum(1, keepdim=True) / allowed.sum(1, keepdim=True)
    change = torch.where(allowed, change - shift, 0.0)
    direction = advantages[:, None] * _direction(old, sampled)
    return torch.stack(
        [
            logprob,
            mass,
            _entropy(new) - _entropy(old),
            ((after > before) & others).sum(1) / number,
            ((new > old) & others).sum(1) / number,
            (change * direction).sum(1),
            direction.square().sum(1),
            change.square().sum(1),
        ]
    )


def _first_order(before: Tensor, targets: Tensor, advantages: Tensor) -> Tensor:
    sampled, law = targets[:, None], before.log_softmax(-1)
    direction = _direction(law, sampled)
    size = direction.square().sum(1)  # q
    surprise = torch.where(torch.isfinite(law), law.exp() * (law + _entropy(law)[:, None]), 0.0)
    logprob = advantages * size
    mass = -logprob * law.gather(1, sampled)[:, 0].exp()
    return torch.stack([logprob, mass, -advantages * (direction * surprise).sum(1)])


def _direction(law: Tensor, sampled: Tensor) -> Tensor:
    """[n, V] e_y - pi, from the log of pi."""
    return (-law.exp()).scatter_add(1, sampled, torch.ones_like(law[:, :1]))


def _entropy(law: Tensor) -> Tensor:
    """[n], from log-probs [n, V] that may be -inf."""
    return -torch.where(torch.isfinite(law), law.exp() * law, 0.0).sum(-1)
