"""The policy inside a DeepSpeed engine: forward over micro-batches, backward, one update on all ranks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import deepspeed
import torch
from deepspeed.runtime import compiler
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.optim import ON_CPU, OptimConfig, Tuning, ZeroConfig, deepspeed_config, lr_factor, tag_for_muon
from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.policy import PolicyModule, Vocabulary
from sapo_vl.model.routing import RouteError, RouteTape


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an objective returns for one micro-batch."""

    loss: Tensor  # scalar: this micro-batch's share; shares of all micro-batches and ranks sum to the global loss
    finite: Tensor  # [B] bool, False where a response's loss is not finite


ObjectiveFn = Callable[[MicroBatch, Tensor, Tensor], Objective]  # (micro-batch, log-probs [N], entropy [N])

RoutesFn = Callable[[MicroBatch, RouteTape], None]  # (micro-batch, its routing in the forward pass of the update)


class TokenLogprobs(NamedTuple):
    """What a pass without gradient gives for a micro-batch."""

    logprobs: Tensor  # [N]
    entropy: Tensor  # [N]
    routes: Tensor | None  # [T, L, k] the experts gone through; None for a dense model, or if not asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """One optimizer update, the same numbers on every rank but for `offenders`."""

    applied: bool  # False: a loss or gradient was not finite, and no rank changed its weights
    loss: float  # global
    grad_norm: float  # global, before clipping
    lr: float
    offenders: tuple[tuple[int, int], ...]  # this rank's (micro-batch, response) with a non-finite loss or gradient


def import_muon_as_it_is() -> None:
    """Imports DeepSpeed's Muon without torch.compile, for a CPU.

    DeepSpeed asks for it whatever the optimizer is, and its functions are decorated with torch.compile: that loads the
    compiler, 5 CPU seconds a rank, and running them so on a CPU would need a C++ compiler and minutes.
    """
    kept, compiler.compile = compiler.compile, lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = kept


class PolicyEngine:
    """Owns the DeepSpeed engine. Updates are driven here: boundary, scaling, finiteness, learning rate."""

    def __init__(
        self,
        policy: PolicyModule,
        optim: OptimConfig,
        zero: ZeroConfig,
        dtype: str,
        world: World,
        total_updates: int,
        tuning: Tuning = ON_CPU,
    ) -> None:
        if optim.name == "muon":
            tag_for_muon(policy)
        self.optim, self.zero, self.world, self.total_updates = optim, zero, world, total_updates
        self.updates = 0  # applied, dropped or skipped
        self.dropped_in_a_row = 0
        learning = [p for p in policy.parameters() if p.requires_grad]
        if not learning:
            raise ValueError("nothing to train: model.freeze leaves no parameter with a gradient")
        if world.device.type == "cpu":
            import_muon_as_it_is()
        # DeepSpeed's attributes depend on the stage and carry no useful types.
        self.ds: Any = deepspeed.initialize(
            model=policy,
            model_parameters=learning,  # type: ignore[arg-type]
            config=deepspeed_config(optim, zero, dtype, tuning),
            dist_init_required=False,
        )[0]
        self._learning = learning
        self._clips = zero.stage == 0 and dtype == "float32"  # in DeepSpeed's place
        if self._clips and world.size == 1:
            self.ds.enable_backward_allreduce = False  # one rank's sum with itself: every gradient copied three times
        self._peak_lrs = [group["lr"] for group in self.ds.optimizer.param_groups]

    @property
    def module(self) -> PolicyModule:
        return self.ds.module

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        filler: MicroBatch,
        objective: ObjectiveFn,
        temperature: float = 1.0,
        on_routes: RoutesFn | None = None,
    ) -> UpdateResult:
        """Backward over this rank's micro-batches, then one step on all ranks.

        Micro-batches with `replay` go through their old_routes; `on_routes` is shown the routing of those whose old one
        is known: they have old_routes, or no old_logprobs.

        Ranks with fewer micro-batches run `filler` in their place, without the objective and with zero gradient,
        since sharded engines communicate in every forward and backward. A non-finite loss anywhere is made to
        reach every rank's gradient, so that DeepSpeed's own check drops the update on all of them.
        """
        rounds = int(self.world.max(len(micro_batches)))
        lr = self._set_lr()
        if not self.module.training:
            self.ds.train()
        losses: list[Tensor] = []
        offenders: list[tuple[int, int]] = []
        for i in range(rounds):
            real = i < len(micro_batches)
            batch = (micro_batches[i] if real else filler).to(self.world.device)
            last = i + 1 == rounds
            self.ds.set_gradient_accumulation_boundary(last)
            old_is_known = batch.old_routes is not None or batch.old_logprobs is None
            tape = self._tape(batch) if old_is_known else None
            logprobs, entropy = self.ds(batch, temperature=temperature, tape=tape)
            if tape is not None and on_routes is not None:
                on_routes(batch, tape)
            if real:
                out = objective(batch, logprobs, entropy)
                loss = out.loss
                offenders += [(i, int(j)) for j in (~out.finite).nonzero()[:, 0]]
            else:
                loss = logprobs.sum() * 0.0
            losses.append(loss.detach())
            finite = not offenders and bool(torch.isfinite(torch.stack(losses)).all())
            dropped = last and self.world.any(not finite)
            if dropped:
                loss = loss * float("nan")
            with _watch_gradient(logprobs, batch) as bad_gradient:
                # DeepSpeed averages gradients over ranks; the loss is a share of a global sum.
                self.ds.backward(loss * self.world.size, scale_wrt_gas=False)
            if real and not dropped:  # the NaN above is ours and names nobody
                offenders += [(i, j) for j in bad_gradient if (i, j) not in offenders]
        total = float(self.world.sum([float(torch.stack(losses).sum())])[0])
        applied, norm = self._step()
        self.updates += 1
        self.dropped_in_a_row = 0 if applied else self.dropped_in_a_row + 1
        return UpdateResult(applied=applied, loss=total, grad_norm=norm, lr=lr, offenders=tuple(offenders))

    def skip(self) -> None:
        """An update that was due and had nothing to learn from. The learning rate's schedule goes on: it counts on as
        many as were planned."""
        self.updates += 1

    def _tape(self, batch: MicroBatch) -> RouteTape | None:
        """What records the routing of a pass, and replays the old one if the micro-batch says so."""
        if batch.replay and (self.module.routes is None or batch.old_routes is None):
            raise RouteError("a micro-batch is to replay routes, but it has none, or the model takes none")
        if self.module.routes is None:
            return None
        return RouteTape(self.module.routes, batch.old_routes if batch.replay else None)

    @torch.no_grad()
    def logprobs(
        self,
        micro_batches: Sequence[MicroBatch],
        filler: MicroBatch,
        temperature: float = 1.0,
        record_routes: bool = False,
    ) -> list[TokenLogprobs]:
        """Every micro-batch under the current weights, without gradient; those with `replay` through old_routes."""
        rounds = int(self.world.max(len(micro_batches)))
        self.ds.eval()
        out = []
        for i in range(rounds):
            batch = (micro_batches[i] if i < len(micro_batches) else filler).to(self.world.device)
            tape = self._tape(batch) if record_routes or batch.replay else None
            logprobs, entropy = self.module(batch, temperature=temperature, tape=tape)
            out.append(TokenLogprobs(logprobs, entropy, tape.used if record_routes and tape else None))
        self.ds.train()
        return out[: len(micro_batches)]

    @torch.no_grad()
    def vocabulary(self, batch: MicroBatch, tokens: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits [n, V] of the law at response tokens [n] of a micro-batch, under the current weights and, as in
        `logprobs`, through its old_routes if it has `replay`. Every rank calls it, if only with a filler and no tokens.
        """
        self.ds.eval()
        job = Vocabulary(batch=batch.to(self.world.device), tokens=tokens.to(self.world.device))
        logits, _ = self.module(job, temperature=temperature, tape=self._tape(job.batch) if batch.replay else None)
        self.ds.train()
        return logits

    def _set_lr(self) -> float:
        factor = lr_factor(self.optim, self.updates, self.total_updates)
        for group, peak in zip(self.ds.optimizer.param_groups, self._peak_lrs, strict=True):
            group["lr"] = peak * factor
        return self.optim.lr * factor

    def _step(self) -> tuple[bool, float]:
        """(whether the update was applied, global gradient norm before clipping)."""
        if self.zero.stage == 0:
            # Gradients are whole and equal on every rank here; DeepSpeed checks none of them without ZeRO.
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._learning if p.grad is not None])
            if not torch.isfinite(norm):
                self.ds.zero_grad()
                return False, float(norm)
            if self._clips:
                torch.nn.utils.clip_grads_with_norm_(self._learning, self.optim.clip, norm)
            self.ds.step()
            return True, float(norm)
        self.ds.step()
        applied = bool(self.ds.was_step_applied())
        return applied, float(self.ds.get_global_grad_norm() or 0.0)


@contextmanager
def _watch_gradient(logprobs: Tensor, batch: MicroBatch) -> Iterator[list[int]]:
    """Collects the responses of the micro-batch whose log-probs receive a non-finite gradient."""
    bad: list[int] = []

    def look(grad: Tensor) -> None:
        if not bool(torch.isfinite(grad).all()):
            owner = torch.repeat_interleave(torch.arange(len(batch.lengths), device=grad.device), batch.lengths)
            bad.extend(sorted(set(owner[~torch.isfinite(grad)].tolist())))

    handle = logprobs.register_hook(look)
    try:
        yield bad
    finally:
        handle.remove()


@contextmanager
def gathered(parameters: Sequence[Any], stage: int) -> Iterator[None]:
    """Makes the given parameters whole on every rank for the duration (ZeRO-3); does nothing below stage 3."""
    if stage < 3:
        yield
        return
    with deepspeed.zero.GatheredParameters(list(parameters)):
        yield
