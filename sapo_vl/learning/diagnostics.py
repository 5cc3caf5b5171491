"""What a person needs to trust an update: ratios and gates by the sign of the advantage, entropy, rewards.

Everything here is a sum, a count or an order statistic over all ranks, so the numbers are equal on every rank
and do not depend on how the batch was split over micro-batches and ranks (float sums up to rounding).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning import sequence_stats
from sapo_vl.learning.advantage import AdvantageStats
from sapo_vl.losses import LossConfig
from sapo_vl.losses.base import MAX_LOG_RATIO
from sapo_vl.losses.sapo import SapoConfig
from sapo_vl.record.stats import global_quantiles
from sapo_vl.types import Finish, RolloutGroup, ScoreStatus

# Bin i of a log-ratio histogram is [edge i-1, edge i): 17 bins, the first and the last are open. The middle
# bin holds ratios within 0.1% of 1; a clip range of +-0.2 lies between the edges 0.1 and 0.3.
_POSITIVE_EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LOG_RATIO_EDGES = (*(-edge for edge in reversed(_POSITIVE_EDGES)), *_POSITIVE_EDGES)

QUANTILES = {"q01": 0.01, "q05": 0.05, "q50": 0.5, "q95": 0.95, "q99": 0.99}
SIGNS = ("pos", "neg")
MODALITIES = ("image", "text")  # of the prompt

Stats = dict[str, float | list[float]]


class UpdateStats:
    """Statistics of the response tokens of ONE optimizer update. Make one per update and rank."""

    def __init__(self, temperatures: SapoConfig | None = None) -> None:
        """temperatures: those of D_i and its bound (see sequence_stats); None = SAPO's defaults."""
        self._temperatures = temperatures or SapoConfig()
        self._columns: list[np.ndarray] = []  # [5, n] float32: log-ratio, gate, entropy, advantage, image
        self._lengths: list[np.ndarray] = []  # [B] int64

    def add(
        self, log_ratio: Tensor, gate: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, image: Tensor
    ) -> None:
        """One micro-batch, [B, T]: log pi_theta - log pi_old, f'(r), entropy in nats, A, a bool mask; image [B] bool.

        Values under a False mask may be anything; a response without a token counts nowhere. The sign of a response
        is that of its first token's A. Raises ValueError if the shapes differ, and TypeError for a mask or image
        that is not bool.
        """
        for name, flags in {"mask": mask, "image": image}.items():
            if flags.dtype != torch.bool:
                raise TypeError(f"{name} must be bool, got {flags.dtype}; use {name}.bool()")
        tensors = {"gate": gate, "entropy": entropy, "advantages": advantages, "mask": mask}
        for name, tensor in tensors.items():
            if tensor.shape != log_ratio.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, log_ratio is {tuple(log_ratio.shape)}")
        if image.shape != log_ratio.shape[:1]:
            raise ValueError(f"image is {tuple(image.shape)}, log_ratio is {tuple(log_ratio.shape)}")
        of_tokens = image.to(log_ratio.device)[:, None].expand_as(log_ratio)
        rows = torch.stack([t.detach().float() for t in (log_ratio, gate, entropy, advantages, of_tokens)])
        self._columns.append(rows[:, mask].cpu().numpy())
        lengths = mask.sum(dim=1).cpu().numpy()
        self._lengths.append(lengths[lengths > 0])

    def reduce(self, world: World) -> Stats:
        """The statistics over all ranks. Every rank must call it, also one that added nothing.

        tokens, tokens/{pos,neg,image,text}: tokens counted below; pos and neg by A > 0 and A < 0, A = 0 is in
        neither; image and text by whether the prompt has an image.
        log_ratio/nonfinite: tokens whose log-ratio is NaN or infinite; they are left out of everything else.
        log_ratio/{sign}/mean, q01 ... q99, max_abs: exact; hist: counts over LOG_RATIO_EDGES.
        gate/mean, gate/{sign,modality}/mean: mean f'(r), the effective update ratio whatever the loss.
        entropy/mean: nats. ratio/mean_abs_dev, ratio/{sign,modality}/mean_abs_dev: mean |r - 1|. ratio/max. The
        exponent of r is held at MAX_LOG_RATIO as in the losses.
        kl/old_new_k1, kl/old_new_k3: estimators of KL(pi_old || pi_theta), mean(-log r) and
        mean(r - 1 - log r) (Schulman, "Approximating KL Divergence", 2020).
        sequence/..., sequence/{sign,modality}/...: by response, see `sequence_stats.values`.

        A mean, quantile or maximum of no tokens is left out of the result.
        """
        local, responses = self._tokens(), self._responses()
        finite = np.isfinite(local[0])
        kept = local[:, finite]
        parts = {"pos": kept[:, kept[3] > 0], "neg": kept[:, kept[3] < 0]}
        parts |= {"image": kept[:, kept[4] > 0], "text": kept[:, kept[4] == 0]}

        vectors = [np.array([np.count_nonzero(~finite)]), _whole_sums(kept)]
        vectors += [_part_sums(part) for part in parts.values()]
        vectors += [_hist(parts[sign]) for sign in SIGNS]
        vectors += [sequence_stats.local_sums(responses)]
        total = world.sum(np.concatenate(vectors))
        nonfinite, whole, *by_part, hist_pos, hist_neg, sequences = np.split(
            total, np.cumsum([len(v) for v in vectors])[:-1]
        )
        local_largest = np.array([kept[0].max(initial=-np.inf), *sequence_stats.local_maxima(responses)])
        largest, *sequence_maxima = world.maxima(local_largest)
        samples = [parts[sign][0] for sign in SIGNS]
        quantiles = global_quantiles(samples, [0.0, *QUANTILES.values(), 1.0], world)

        out: Stats = {"tokens": whole[0], "log_ratio/nonfinite": nonfinite[0]}
        if whole[0]:
            means = whole[1:] / whole[0]
            out |= zip(("gate/mean", "entropy/mean", "ratio/mean_abs_dev"), means[:3], strict=True)
            out |= {"kl/old_new_k1": means[3], "kl/old_new_k3": means[4]}
            out["ratio/max"] = np.exp(min(largest, MAX_LOG_RATIO))
        for part, sums in zip(parts, by_part, strict=True):
            out |= _part_stats(part, sums)
        for sign, hist, values in zip(SIGNS, (hist_pos, hist_neg), quantiles, strict=True):
            out |= _sign_stats(sign, hist, values)
        out |= sequence_stats.values(sequences, np.array(sequence_maxima))
        return {name: v if isinstance(v, list) else float(v) for name, v in out.items()}

    def lines(self, groups: Sequence[RolloutGroup], **shared: Any) -> list[dict[str, Any]]:
        """A JSON-like object for each response of this rank, see `sequence_stats.sequence_lines`.

        groups: those of the micro-batches added, in that order.
        """
        log_ratio, gate = self._tokens()[:2]
        return sequence_stats.sequence_lines(self._responses(), log_ratio, gate, groups, **shared)

    def _tokens(self) -> np.ndarray:
        return np.concatenate([np.empty((5, 0), np.float32), *self._columns], axis=1)

    def _responses(self) -> sequence_stats.Responses:
        log_ratio, _, _, advantages, image = self._tokens()
        lengths = np.concatenate([np.empty(0, np.int64), *self._lengths])
        first = np.cumsum(lengths) - lengths
        return sequence_stats.measure(
            log_ratio, lengths, advantages[first].astype(np.float64), image[first] > 0, self._temperatures
        )


def gate_temperatures(loss: LossConfig) -> SapoConfig:
    """The temperatures that D_i is worked out with: SAPO's own, or its defaults where another loss is trained."""
    params = loss.loss_params()
    return params if isinstance(params, SapoConfig) else SapoConfig()


def _whole_sums(kept: np.ndarray) -> np.ndarray:
    """[6] tokens, and sums of gate, entropy, |r - 1|, -log r, r - 1 - log r over tokens [5, n]."""
    log_ratio, gate, entropy = kept[:3].astype(np.float64)
    bounded = np.minimum(log_ratio, MAX_LOG_RATIO)
    excess = np.expm1(bounded)
    terms = (gate, entropy, np.abs(excess), -log_ratio, excess - bounded)
    return np.array([len(gate), *(t.sum() for t in terms)])


def _part_sums(part: np.ndarray) -> np.ndarray:
    """[4] tokens, and sums of log-ratio, gate and |r - 1| over tokens [5, n]."""
    excess = np.expm1(np.minimum(part[0].astype(np.float64), MAX_LOG_RATIO))
    return np.array([part.shape[1], *part[:2].sum(axis=1, dtype=np.float64), np.abs(excess).sum()])


def _part_stats(part: str, sums: np.ndarray) -> Stats:
    n, log_ratio, gate, deviation = sums
    out: Stats = {f"tokens/{part}": n}
    if n:
        out |= {f"gate/{part}/mean": gate / n, f"ratio/{part}/mean_abs_dev": deviation / n}
        if part in SIGNS:
            out[f"log_ratio/{part}/mean"] = log_ratio / n
    return out


def _hist(part: np.ndarray) -> np.ndarray:
    """[bins] counts of the log-ratios of tokens [5, n]."""
    bins = np.searchsorted(LOG_RATIO_EDGES, part[0].astype(np.float64), side="right")
    return np.bincount(bins, minlength=len(LOG_RATIO_EDGES) + 1)


def _sign_stats(sign: str, hist: np.ndarray, quantiles: np.ndarray | None) -> Stats:
    out: Stats = {f"log_ratio/{sign}/hist": [int(c) for c in hist]}
    if quantiles is None:
        return out
    smallest, *inner, largest = quantiles
    out |= {f"log_ratio/{sign}/{name}": q for name, q in zip(QUANTILES, inner, strict=True)}
    out[f"log_ratio/{sign}/max_abs"] = max(abs(smallest), abs(largest))
    return out


def rollout_stats(groups: Sequence[RolloutGroup], advantages: AdvantageStats, world: World) -> dict[str, float]:
    """Statistics of scored groups over all ranks. Every rank must call it, also one without groups.

    `advantages` is what assign_advantages counted over these groups: it decides which of them are dead.

    Means run over scored rollouts (reward not None) only; a name with nothing to average is left out.

    rollouts, groups/total; score/{ScoreStatus}, finish/{Finish}: counts.
    reward/mean, reward/std (population); reward/task/{task}; reward/part/{name}.
    scored/task/{task}: scored rollouts of a task, the n of its means.
    accuracy/mean, accuracy/{task}: means of the part "accuracy".
    groups/dead_share: groups that give no gradient, for too few scored rewards, for equal ones, or for a mean that
    advantage.scale=mean cannot divide by; groups/mean_not_positive_share: for the last reason, with that scale only.
    unscorable/share: rollouts without a reward, whichever the reason.
    length/mean, min, max, q50, q95: response tokens; length/truncated_share: cut at the token limit.
    """
    sums, counts = _local_sums(groups)
    if advantages.num_groups:
        sums["groups/dead_share"], counts["groups/dead_share"] = advantages.num_dead, advantages.num_groups
        if advantages.num_mean_not_positive is not None:
            name = "groups/mean_not_positive_share"
            sums[name], counts[name] = advantages.num_mean_not_positive, advantages.num_groups
    names = sorted(set().union(*world.gather(set(counts))))
    dense = [[sums[name], counts[name]] for name in names]
    total, count = world.sum(np.array(dense).reshape(-1)).reshape(-1, 2).T
    number = dict(zip(names, count, strict=True))
    out = {name: s / n for name, s, n in zip(names, total, count, strict=True)}

    for name, n in number.items():
        if name.startswith("reward/task/"):
            out["scored/task/" + name.removeprefix("reward/task/")] = n
    out["groups/total"] = number.get("groups/dead_share", 0.0)
    out["rollouts"] = number.get("unscorable/share", 0.0)
    out |= _status_counts(groups, world)
    rewards = np.array([r.reward for g in groups for r in g.rollouts if r.reward is not None], np.float64)
    if "reward/mean" in out:
        squares = world.sum([np.square(rewards - out["reward/mean"]).sum()])[0]
        out["reward/std"] = np.sqrt(squares / number["reward/mean"])
    lengths = np.array([len(r.response_ids) for g in groups for r in g.rollouts], np.float32)
    quantiles = global_quantiles([lengths], [0.0, 0.5, 0.95, 1.0], world)[0]
    if quantiles is not None:
        out |= zip(("length/min", "length/q50", "length/q95", "length/max"), quantiles, strict=True)
    return {name: float(value) for name, value in out.items()}


def advantage_shares(groups: Sequence[RolloutGroup], world: World) -> dict[str, float]:
    """advantage/share/{task}: the task's part of the sum of |A| over all responses of all ranks; {} where that is 0.

    Every rank must call it, also one without groups. Every task that has a group is named.
    """
    mine: dict[str, float] = defaultdict(float)
    for group in groups:
        mine[group.prompt.problem.task] += sum(abs(r.advantage or 0.0) for r in group.rollouts)
    parts = world.gather(dict(mine))
    total = sum(value for part in parts for value in part.values())
    tasks = sorted({task for part in parts for task in part})
    return {f"advantage/share/{t}": sum(part.get(t, 0.0) for part in parts) / total for t in tasks} if total > 0 else {}


def _local_sums(groups: Sequence[RolloutGroup]) -> tuple[dict[str, float], dict[str, float]]:
    """Per name of a mean: this rank's sum, and how many values it holds."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)

    def put(name: str, value: float) -> None:
        sums[name] += value
        counts[name] += 1

    for group in groups:
        task = group.prompt.problem.task
        for r in group.rollouts:
            put("unscorable/share", r.reward is None)
            put("length/mean", len(r.response_ids))
            put("length/truncated_share", r.finish is Finish.LENGTH)
            if r.reward is None:
                continue
            put("reward/mean", r.reward)
            put(f"reward/task/{task}", r.reward)
            for part, value in r.parts.items():
                put(f"reward/part/{part}", value)
            if "accuracy" in r.parts:
                put("accuracy/mean", r.parts["accuracy"])
                put(f"accuracy/{task}", r.parts["accuracy"])
    return sums, counts


def _status_counts(groups: Sequence[RolloutGroup], world: World) -> dict[str, float]:
    rollouts = [r for g in groups for r in g.rollouts]
    counts = {f"score/{status}": sum(r.score_status is status for r in rollouts) for status in ScoreStatus}
    counts |= {f"finish/{how}": sum(r.finish is how for r in rollouts) for how in Finish}
    return dict(zip(counts, world.sum(list(counts.values())), strict=True))
