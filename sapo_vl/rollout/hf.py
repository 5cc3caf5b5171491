"""Sampling with the trainer's own model, in process: no second copy of the weights, no engine mismatch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sapo_vl.model.chat import Chat
from sapo_vl.model.policy import Decode, PolicyModule, Prefill
from sapo_vl.model.prefix_attention import KVCache, build_layout
from sapo_vl.model.routing import RouteTape
from sapo_vl.rollout.base import SamplingParams, sample_tokens, uniforms
from sapo_vl.types import Finish, Prompt, Rollout, RolloutGroup


class TransformersEngine:
    """Each image is encoded once and each prompt run once per group; its G responses share the result.

    All responses of a batch of prompts advance together, one token a forward pass; finished ones are
    dropped once they are the majority. `any_rank` tells whether a flag holds on any rank: with ZeRO-3 a
    forward pass gathers weights from all ranks, so no rank may stop before the last one has finished.
    """

    def __init__(
        self,
        policy: PolicyModule,
        chat: Chat,
        prompts_per_batch: int,
        device: torch.device | str = "cpu",
        any_rank: Callable[[bool], bool] = bool,
    ) -> None:
        self.policy, self.chat, self.device = policy, chat, device
        self.prompts_per_batch, self.any_rank = prompts_per_batch, any_rank
        self.weight_version = 0

    def sync(self, version: int) -> None:
        """The weights are the trainer's own; only their version is noted."""
        self.weight_version = version

    def surer_sync(self) -> str | None:
        return None

    def close(self) -> None:
        """Nothing of its own to free."""

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[RolloutGroup]:
        was_training = self.policy.training
        self.policy.eval()
        try:
            groups: list[RolloutGroup] = []
            for i in range(0, len(prompts), self.prompts_per_batch):
                groups += self._batch(prompts[i : i + self.prompts_per_batch], params)
            return groups
        finally:
            self.policy.train(was_training)

    def _batch(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[RolloutGroup]:
        cache, logits, prompt_routes = self._prefill(prompts, params)
        prompt_of = cache.prompt_of
        logits = logits[prompt_of]
        noise = torch.from_numpy(
            np.stack(
                [
                    uniforms(p.problem.id, j, params.seed, params.max_new_tokens)
                    for p in prompts
                    for j in range(params.n)
                ]
            )
        ).to(self.device)
        next_position = torch.tensor([p.next_position for p in prompts], device=self.device)[prompt_of]
        eos = torch.tensor(self.chat.eos_ids, device=self.device)
        rows = torch.arange(len(prompt_of), device=self.device)  # the responses still in the cache
        ids_out = torch.full((len(rows), params.max_new_tokens), -1, dtype=torch.int64, device=self.device)
        logprobs_out = torch.zeros((len(rows), params.max_new_tokens), device=self.device)
        done = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        routes_out: list[Tensor] = []  # a step after the other, [responses, L, k]
        # [responses, V]: which tokens a response has already.
        used = torch.zeros_like(logits, dtype=torch.bool) if params.presence_penalty else None
        for t in range(params.max_new_tokens):
            if used is not None:
                logits = logits - params.presence_penalty * used[rows]
            ids, logprobs = sample_tokens(logits, noise[rows, t], params)
            if used is not None:
                used[rows, ids] = True
            live = ~done[rows]
            ids_out[rows[live], t] = ids[live]
            logprobs_out[rows[live], t] = logprobs[live]
            done[rows] |= torch.isin(ids, eos)
            if t + 1 == params.max_new_tokens or not self.any_rank(not bool(done.all())):
                break
            live = ~done[rows]
            if 0 < 2 * int(live.sum()) < len(rows):
                ids, rows = ids[live], rows[live]
                cache.keep(live)
            cache.length = t + 1
            position = (next_position[rows] + t).expand(3, -1)[..., None]
            tape = self._tape(params)
            logits, _ = self.policy(Decode(ids=ids[:, None], positions=position, cache=cache), tape=tape)
            if tape is not None:
                step = tape.native
                step = step.view(torch.int16) if step.dtype == torch.uint16 else step  # torch cannot index uint16
                routes_out.append(step.new_zeros((len(ids_out), *step.shape[1:])).index_copy_(0, rows, step))
        groups = self._collect(prompts, params.n, ids_out.cpu().numpy(), logprobs_out.cpu().numpy(), done.cpu().numpy())
        if prompt_routes is None:
            return groups
        return _with_routes(groups, prompt_routes, routes_out)

    def _tape(self, params: SamplingParams) -> RouteTape | None:
        return RouteTape(self.policy.routes) if params.routes and self.policy.routes is not None else None

    def _prefill(self, prompts: Sequence[Prompt], params: SamplingParams) -> tuple[KVCache, Tensor, Tensor | None]:
        """The cache for n responses of every prompt, the logits [n prompts, V] after each prompt, their routes."""
        lengths = torch.tensor([len(p.ids) for p in prompts])
        pixels = [p.pixel_values for p in prompts if p.pixel_values is not None]
        grids = [p.image_grid_thw for p in prompts if p.image_grid_thw is not None]
        blank_pixels, blank_grid = self.chat.blank_pixels()
        cache = KVCache(
            layout=build_layout([(int(n), ()) for n in lengths]).to(self.device),
            prompt_of=torch.arange(len(prompts), device=self.device).repeat_interleave(params.n),
            prompt_mask=(torch.arange(int(lengths.max()))[None] < lengths[:, None]).to(self.device),
            max_new=params.max_new_tokens,
        )
        job = Prefill(
            ids=torch.from_numpy(np.concatenate([p.ids for p in prompts]))[None].to(self.device),
            positions=torch.from_numpy(np.concatenate([p.positions for p in prompts], axis=1))[:, None].to(self.device),
            pixel_values=(torch.cat(pixels) if pixels else blank_pixels).to(self.device),
            image_grid_thw=(torch.cat(grids) if grids else blank_grid).to(self.device),
            has_images=bool(pixels),
            cache=cache,
            last_index=(lengths.cumsum(0) - 1).to(self.device),
        )
        tape = self._tape(params)
        logits, _ = self.policy(job, tape=tape)
        return cache, logits, None if tape is None else tape.native

    def _collect(
        self, prompts: Sequence[Prompt], n: int, ids: np.ndarray, logprobs: np.ndarray, done: np.ndarray
    ) -> list[RolloutGroup]:
        groups = []
        for i, prompt in enumerate(prompts):
            rollouts = []
            for row in range(i * n, (i + 1) * n):
                length = int((ids[row] >= 0).sum())
                response = ids[row, :length].copy()
                rollouts.append(
                    Rollout(
                        response_ids=response,
                        logprobs=logprobs[row, :length].copy(),
                        finish=Finish.STOP if done[row] else Finish.LENGTH,
                        weight_version=self.weight_version,
                        text=self.chat.decode(response),
                    )
                )
            groups.append(RolloutGroup(prompt=prompt, rollouts=tuple(rollouts)))
        return groups


def _with_routes(groups: Sequence[RolloutGroup], prompts: Tensor, steps: Sequence[Tensor]) -> list[RolloutGroup]:
    """The groups with their routes: prompts [T, L, k] one after the other, steps of [responses, L, k]."""
    of_prompts = np.split(prompts.cpu().numpy(), np.cumsum([len(g.prompt.ids) for g in groups])[:-1])
    empty = prompts.new_zeros((sum(len(g.rollouts) for g in groups), 0, *prompts.shape[1:]))
    of_responses = iter((torch.stack(list(steps), dim=1) if steps else empty).cpu().numpy().view(of_prompts[0].dtype))
    out = []
    for group, own in zip(groups, of_prompts, strict=True):
        rollouts = tuple(
            dataclasses.replace(r, routes=next(of_responses)[: len(r.response_ids) - 1].copy()) for r in group.rollouts
        )
        out.append(dataclasses.replace(group, rollouts=rollouts, prompt_routes=own.copy()))
    return out
