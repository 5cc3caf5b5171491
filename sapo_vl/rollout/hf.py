"""Sampling with the trainer's own model, in process: no second copy of the weights, no engine mismatch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from sapo_vl.model.chat import Chat
from sapo_vl.model.kv_cache import KVCache, key_bytes_per_token
from sapo_vl.model.loading import base_model
from sapo_vl.model.policy import Decode, PolicyModule, Prefill
from sapo_vl.model.prefix_attention import build_layout
from sapo_vl.model.routing import RouteTape
from sapo_vl.rollout.base import CACHE_SHARE, OnGroup, SamplingParams, sample_tokens, uniforms
from sapo_vl.rollout.drawn import Drawn, indexable
from sapo_vl.rollout.schedule import REFILL_SHARE, Held, Part, Room, free_share, one_pass
from sapo_vl.types import Prompt, RolloutGroup

LIVE_SHARE = 0.75  # finished responses are dropped once fewer than this are under way


class Act(IntEnum):
    """What a rank wants to do next. All do what is highest."""

    STOP = 0
    DECODE = 1
    PREFILL = 2


class TransformersEngine:
    """Each image is encoded once and each prompt run once per group; its G responses share the result.

    All responses under way advance together, one token a forward pass; finished ones make room for waiting prompts.
    `cache_bytes` tells how much memory they may take, by default a share of what is free. `most` gives the largest of
    a number on any rank: with ZeRO-3 a forward pass gathers weights from all ranks, so all run the same passes, also a
    rank that has nothing to do. `shared_weights`: a forward pass makes weights that the trainer uses, too, as ZeRO-3
    does; else autograd is told of nothing at all on a CPU, which makes small operators cheaper.
    """

    def __init__(
        self,
        policy: PolicyModule,
        chat: Chat,
        device: torch.device | str = "cpu",
        cache_bytes: Callable[[], int] | None = None,
        most: Callable[[int], int] = int,
        shared_weights: bool = False,
    ) -> None:
        self.policy, self.chat, self.device = policy, chat, torch.device(device)
        self.cache_bytes = cache_bytes or functools.partial(free_share, CACHE_SHARE, self.device)
        self.most = most
        # On a GPU prompts go through compiled attention, and the two together were not tried.
        untold = self.device.type == "cpu" and not shared_weights
        self._without_gradient = torch.inference_mode if untold else torch.no_grad
        self.weight_version = 0

    def sync(self, version: int) -> None:
        """The weights are the trainer's own; only their version is noted."""
        self.weight_version = version

    def surer_sync(self) -> str | None:
        return None

    def rest(self) -> None:
        """Nothing on these devices is for sampling alone."""

    def close(self) -> None:
        """Nothing of its own to free."""

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[RolloutGroup]:
        """Follows the protocol, but tells nobody of a group: all are finished together."""
        was_training = self.policy.training
        self.policy.eval()
        try:
            with self._without_gradient():
                sampling = _Sampling(self, prompts, params)
                while (act := self.most(sampling.wish())) != Act.STOP:
                    sampling.prefill() if act == Act.PREFILL else sampling.decode()
            return sampling.drawn.groups(prompts, params.n, self.weight_version, self.chat.decode)
        finally:
            self.policy.train(was_training)

    def room(self, params: SamplingParams) -> Room:
        config = base_model(self.policy.hf).config.text_config
        weight = self.policy.head.weight
        token = key_bytes_per_token(
            config.num_hidden_layers, config.num_key_value_heads, config.head_dim, weight.element_size()
        )
        return Room(
            bytes=self.cache_bytes(),
            token_bytes=token,
            vocabulary=config.vocab_size,
            max_new_tokens=params.max_new_tokens,
        )


@dataclass(slots=True)
class _Rows:
    """The B responses in the cache, in its order."""

    owner: np.ndarray  # [B] int64, the number of the response: prompt * n + sample
    age: np.ndarray  # [B] int64, tokens drawn
    live: np.ndarray  # [B] bool
    noise: np.ndarray  # [B, max_new] float64
    ids: Tensor  # [B] int64, the token drawn last
    positions: Tensor  # [B] int64, where it stands
    used: Tensor | None  # [B, V] bool, which tokens a response has already; only for a presence penalty

    def take(self, rows: np.ndarray) -> _Rows:
        """Those where `rows` ([B] bool) is True."""
        there = torch.from_numpy(rows).to(self.ids.device)
        return _Rows(
            owner=self.owner[rows],
            age=self.age[rows],
            live=self.live[rows],
            noise=self.noise[rows],
            ids=self.ids[there],
            positions=self.positions[there],
            used=None if self.used is None else self.used[there],
        )

    def plus(self, other: _Rows) -> _Rows:
        return _Rows(
            owner=np.concatenate([self.owner, other.owner]),
            age=np.concatenate([self.age, other.age]),
            live=np.concatenate([self.live, other.live]),
            noise=np.concatenate([self.noise, other.noise]),
            ids=torch.cat([self.ids, other.ids]),
            positions=torch.cat([self.positions, other.positions]),
            used=None if self.used is None or other.used is None else torch.cat([self.used, other.used]),
        )


class _Sampling:
    """One call of `generate`: what waits, what is under way, what was drawn."""

    def __init__(self, engine: TransformersEngine, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        self.engine, self.prompts, self.params = engine, prompts, params
        self.policy, self.chat, self.device = engine.policy, engine.chat, engine.device
        self.room = engine.room(params)
        self.lengths = [len(p.ids) for p in prompts]
        self.waiting = [Part(prompt=i, first=0, count=params.n) for i in range(len(prompts))]
        self.filling = False  # prompts come in until no more fit
        self.cache: KVCache | None = None
        self.rows: _Rows | None = None
        self.drawn = Drawn(len(prompts), len(prompts) * params.n)
        ids = max([self.room.vocabulary, *(i + 1 for i in engine.chat.eos_ids)])
        self.is_end = np.zeros(ids, bool)  # by token id
        self.is_end[list(engine.chat.eos_ids)] = True

    # --- what to do next ---

    def wish(self) -> Act:
        live = self.rows is not None and bool(self.rows.live.any())
        if self.waiting:
            held = self._held()
            fit = len(self.room.admit(self.waiting, self.lengths, held)[0])
            enough = not live or fit == len(self.waiting) or fit >= REFILL_SHARE * held.prompts
            self.filling = fit > 0 and (self.filling or enough)
            if self.filling:
                return Act.PREFILL
        return Act.DECODE if live else Act.STOP

    def _held(self) -> Held:
        """What finished responses had is free: they are dropped before more comes in."""
        if self.rows is None or self.cache is None:
            return Held()
        prompts = np.unique(self.cache.prompt_of[self.rows.live])
        longest = int(self.cache.prompt_lengths[prompts].max(initial=0))
        return Held(prompts=len(prompts), longest=longest, responses=int(self.rows.live.sum()))

    # --- prompts ---

    def prefill(self) -> None:
        """Runs waiting prompts and draws the first token of their responses; a blank one if none fits or waits."""
        parts: list[Part] = []
        if self.waiting and self.filling:
            parts, rest = self.room.admit(self.waiting, self.lengths, self._held())
            now = one_pass(parts, self.lengths)
            parts, self.waiting = parts[:now], parts[now:] + rest
        if parts:
            self._make_room()
            cache, logits = self._run(parts)
            rows = self._new_rows(parts, cache)
            self._draw(rows, logits[torch.from_numpy(cache.prompt_of).to(self.device)])
        else:
            cache, rows = self._blank()
        if self.cache is None or self.rows is None:
            self.cache, self.rows = cache, rows
        elif parts:
            self.cache.join(cache)
            self.rows = self.rows.plus(rows)

    def _run(self, parts: Sequence[Part]) -> tuple[KVCache, Tensor]:
        """The cache for the responses of the parts, and the logits [parts, V] after their prompts."""
        prompts = [self.prompts[p.prompt] for p in parts]
        lengths = [len(p.ids) for p in prompts]
        pixels = [p.pixel_values for p in prompts if p.pixel_values is not None]
        grids = [p.image_grid_thw for p in prompts if p.image_grid_thw is not None]
        cache = KVCache(
            prompt_lengths=np.array(lengths),
            prompt_of=np.repeat(np.arange(len(parts)), [p.count for p in parts]),
            device=self.device,
        )
        ids = np.concatenate([p.ids for p in prompts])
        positions = np.concatenate([p.positions for p in prompts], axis=1)
        images = (torch.cat(pixels), torch.cat(grids)) if pixels else None
        logits, routes = self._pass(ids, positions, images, cache)
        if routes is not None:
            self.drawn.prompt_routes([p.prompt for p in parts], lengths, routes)
        return cache, logits

    def _pass(
        self, ids: np.ndarray, positions: np.ndarray, images: tuple[Tensor, Tensor] | None, cache: KVCache
    ) -> tuple[Tensor, Tensor | None]:
        """(logits after each prompt of the row, routes of its tokens) of ids [T] and positions [3, T]."""
        pixels, grid = images or self.chat.blank_pixels()
        job = Prefill(
            ids=torch.from_numpy(ids)[None].to(self.device),
            positions=torch.from_numpy(positions)[:, None].to(self.device),
            pixel_values=pixels.to(self.device),
            image_grid_thw=grid.to(self.device),
            has_images=images is not None,
            layout=build_layout([(int(n), ()) for n in cache.prompt_lengths]).to(self.device),
            cache=cache,
            last_index=torch.from_numpy(cache.prompt_lengths.cumsum() - 1).to(self.device),
        )
        tape = self._tape()
        logits, _ = self.policy(job, tape=tape)
        return logits, None if tape is None else tape.native

    def _blank(self) -> tuple[KVCache, _Rows]:
        """A prompt of one token with a response that is over."""
        cache = KVCache(prompt_lengths=np.ones(1, np.int64), prompt_of=np.zeros(1, np.int64), device=self.device)
        self._pass(np.full(1, self.chat.pad_id), np.zeros((3, 1), np.int64), None, cache)
        one = torch.zeros(1, dtype=torch.int64, device=self.device)
        rows = _Rows(
            owner=np.zeros(1, np.int64),
            age=np.zeros(1, np.int64),
            live=np.zeros(1, bool),
            noise=np.zeros((1, self.params.max_new_tokens)),
            ids=one,
            positions=one.clone(),
            used=self._unused(1),
        )
        return cache, rows

    def _new_rows(self, parts: Sequence[Part], cache: KVCache) -> _Rows:
        params, count = self.params, len(cache.prompt_of)
        names = [(p.prompt, j) for p in parts for j in range(p.first, p.first + p.count)]
        noise = [uniforms(self.prompts[i].problem.id, j, params.seed, params.max_new_tokens) for i, j in names]
        positions = np.array([self.prompts[i].next_position for i, _ in names], np.int64)
        return _Rows(
            owner=np.array([i * params.n + j for i, j in names], np.int64),
            age=np.zeros(count, np.int64),
            live=np.ones(count, bool),
            noise=np.stack(noise),
            ids=torch.zeros(count, dtype=torch.int64, device=self.device),
            positions=torch.from_numpy(positions).to(self.device),
            used=self._unused(count),
        )

    def _unused(self, count: int) -> Tensor | None:
        if not self.params.presence_penalty:
            return None
        return torch.zeros((count, self.room.vocabulary), dtype=torch.bool, device=self.device)

    # --- tokens ---

    def decode(self) -> None:
        """Runs the last token of every response and draws the next one."""
        rows, cache = self.rows, self.cache
        assert rows is not None and cache is not None  # the first act of all ranks is a prefill
        live = int(rows.live.sum())
        if 0 < live < (len(rows.live) if cache.full else LIVE_SHARE * len(rows.live)):
            rows = self._drop()
        if not live and cache.full:
            cache.forget()
        cache.advance(self.room.columns)
        tape = self._tape()
        positions = rows.positions.expand(3, -1)[..., None]
        logits, _ = self.policy(Decode(ids=rows.ids[:, None], positions=positions, cache=cache), tape=tape)
        if tape is not None:
            native = tape.native
            there = torch.from_numpy(np.flatnonzero(rows.live)).to(self.device)
            self.drawn.routes(rows.owner[rows.live], indexable(native).index_select(0, there))
        rows.positions = rows.positions + 1
        self._draw(rows, logits)

    def _make_room(self) -> None:
        if self.rows is not None and not self.rows.live.any():
            self.cache = self.rows = None
        elif self.rows is not None and not self.rows.live.all():
            self._drop()

    def _drop(self) -> _Rows:
        """Lets go of the responses that are over; one at least is not."""
        assert self.rows is not None and self.cache is not None
        self.cache.keep(self.rows.live, self.room.columns)
        self.rows = self.rows.take(self.rows.live)
        return self.rows

    def _draw(self, rows: _Rows, logits: Tensor) -> None:
        """The next token of every response, from logits [B, V]. One copy to the host."""
        params = self.params
        if rows.used is not None:
            logits = logits - params.presence_penalty * rows.used
        b = np.arange(len(rows.owner))
        at = np.minimum(rows.age, params.max_new_tokens - 1)  # those that are over draw on, in vain
        ids, logprobs = sample_tokens(logits, torch.from_numpy(rows.noise[b, at]).to(self.device), params)
        rows.ids = ids
        if rows.used is not None:
            rows.used[torch.arange(len(b), device=self.device), ids] = True
        host = torch.stack([ids.double(), logprobs.double()]).cpu().numpy()
        drawn = host[0].astype(np.int64)
        live, ended = rows.live, self.is_end[drawn]
        self.drawn.tokens(rows.owner[live], drawn[live], host[1, live].astype(np.float32))
        self.drawn.ended[rows.owner[live & ended]] = True
        rows.age = rows.age + live
        rows.live = live & ~ended & (rows.age < params.max_new_tokens)

    def _tape(self) -> RouteTape | None:
        routes = self.policy.routes
        return RouteTape(routes) if self.params.routes and routes is not None else None
