"""The protocol every rollout engine follows, and the sampling law they share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from sapo_vl.rollout.vllm.config import ServerConfig, VllmConfig
from sapo_vl.rollout.vllm.contract import is_installed
from sapo_vl.strict import Strict
from sapo_vl.types import Prompt, RolloutGroup

CACHE_SHARE = 0.5


class ParityConfig(Strict):
    """How often, and on how much, the engine's log-probs are compared with the trainer's (see rollout/parity.py)."""

    every: int = Field(default=25, ge=0)  # syncs between checks; the first two are always checked. 0 = no others
    prompts: int = Field(default=4, ge=1)  # of each kind (with images, text only) and rank
    responses: int = Field(default=2, ge=1)  # per prompt
    max_new_tokens: int = Field(default=16, ge=1)  # of a compared response
    limit: float = Field(default=0.0, ge=0)  # in nats, for 95% of the tokens; 0 = by dtype, see parity.LIMITS


def engine_here() -> Literal["transformers", "vllm"]:
    """What samples by default: vLLM on a GPU machine that has it, else the trainer's own model."""
    return "vllm" if torch.cuda.is_available() and is_installed() else "transformers"


class RolloutConfig(Strict):
    """How responses are sampled during training."""

    # "transformers": in process, on the trainer's own weights. "vllm": vLLM in the trainer's processes.
    # "vllm_server": vLLM servers that are already running (`sapo-vl serve`). See docs/rollouts.md. Where it is not set,
    # or "auto": vllm where there are GPUs and vLLM, else transformers; what was found is in config.yaml.
    engine: Literal["transformers", "vllm", "vllm_server"] = Field(default_factory=engine_here)
    vllm: VllmConfig = VllmConfig()
    server: ServerConfig = ServerConfig()
    parity: ParityConfig = ParityConfig()  # engine against trainer; the transformers engine needs no check
    # 0 = on-policy. 1 = a batch is sampled with the weights before those that it trains: by servers while the step
    # before it trains, by engines in process in turn (for experiments: it gains no time).
    staleness: int = Field(default=0, ge=0, le=1)
    # DAPO's dynamic sampling: at most so many times a step, groups with equal rewards are replaced by groups of further
    # prompts of their tasks. 0 = off.
    resample: int = Field(default=0, ge=0)
    max_failed_share: float = Field(default=0.1, ge=0, le=1)  # of the latest responses; past it the run stops
    prompts_per_step: int = Field(default=32, ge=1)  # over all ranks
    group_size: int = Field(default=8, ge=1)  # responses per prompt (G)
    max_new_tokens: int = Field(default=2048, ge=1)  # of a response; a longer one is cut off and counted
    temperature: float = Field(default=1.0, gt=0)  # belongs to pi: ratios are of the tempered law
    top_p: float = Field(default=1.0, gt=0, le=1)  # 1 = off
    top_k: int = Field(default=0, ge=0)  # 0 = off
    # Of the transformers engine: of the memory that is free when it begins, for its cache and what it draws from.
    cache_share: float = Field(default=CACHE_SHARE, gt=0, le=0.95)
    # Where pi_old comes from. "rollout": recorded while sampling. "trainer": one forward pass before the first update.
    old_logprobs: Literal["rollout", "trainer"] = "rollout"

    @field_validator("engine", mode="before")
    @classmethod
    def _by_device(cls, value: Any) -> Any:
        return engine_here() if value == "auto" else value

    @model_validator(mode="after")
    def _dead_groups_are_known_too_late(self) -> RolloutConfig:
        if self.resample and self.staleness:
            raise ValueError(
                f"rollout.resample={self.resample} with rollout.staleness={self.staleness}: which groups have equal "
                "rewards is known once they are scored, and the weights that sampled them are gone by then; set one of "
                "the two to 0"
            )
        return self

    @model_validator(mode="after")
    def _recorded_law_must_be_the_trained_one(self) -> RolloutConfig:
        if self.old_logprobs == "rollout" and (self.top_p < 1 or self.top_k > 0):
            raise ValueError(
                f"rollout.top_p={self.top_p}, rollout.top_k={self.top_k} with rollout.old_logprobs=rollout: the "
                "recorded law is cut to the likeliest tokens and the trained one is not: ratios would not start at 1; "
                "set rollout.old_logprobs=trainer, or top_p=1 and top_k=0"
            )
        return self

    @model_validator(mode="after")
    def _servers_need_addresses(self) -> RolloutConfig:
        if self.engine == "vllm_server" and not self.server.urls:
            raise ValueError(
                "rollout.engine=vllm_server without rollout.server.urls: start a server with `sapo-vl serve` and name "
                "it, as in rollout.server.urls=[http://127.0.0.1:8000]"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One request to an engine. temperature 0 = greedy. `seed` fixes every response, whatever the batching."""

    n: int
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0  # taken off the logit of every token that the response has already; evaluation only
    seed: int = 0
    routes: bool = False  # return the experts that the tokens went through, where model and engine can


# Told of a group, with its place among the prompts, as soon as all of its responses are there: in any order, and
# perhaps in another thread than the one that asked. The group is the one that `generate` returns later.
OnGroup = Callable[[int, RolloutGroup], None]


class RolloutEngine(Protocol):
    """Samples responses. `generate` is called by all ranks together, with equally many prompts on each."""

    weight_version: int  # of the weights it samples from

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[RolloutGroup]:
        """One group of `params.n` responses per prompt, in order. Responses of a group are independent draws."""
        ...

    def sync(self, version: int) -> None:
        """Take over the trainer's weights, which are now version `version`. Called by all ranks together."""
        ...

    def surer_sync(self) -> str | None:
        """Use a slower but surer way of taking weights over from now on, and name it; None if there is none left."""
        ...

    def rest(self) -> None:
        """Free what sampling alone takes, as `generate` does at its end: updates come next. Called by all ranks."""
        ...

    def close(self) -> None:
        """Free what the engine holds; it is not used again."""
        ...


def uniforms(prompt_id: str, sample: int, seed: int, length: int) -> np.ndarray:
    """[length] float64 in [0, 1): the randomness of one response, a function of its names alone.

    Independent of rank, batch and order, so a run on one rank and a run on two sample the same responses.
    """
    key = hashlib.blake2b(f"{seed}\0{prompt_id}\0{sample}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(length)


def sample_tokens(logits: Tensor, u: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Draws one token per row by inverting the cumulative distribution at `u`.

    logits [B, V] fp32, banned ids at -inf; u [B] float64 in [0, 1). Returns (ids [B] int64, log-probs [B] fp32
    under the law drawn from: after bans, temperature, top-k and top-p, renormalised). Greedy has log-prob 0.
    """
    if params.temperature == 0:
        ids = logits.argmax(-1)
        return ids, torch.zeros(len(ids), dtype=torch.float32, device=logits.device)
    logits = logits / params.temperature
    if params.top_k > 0:
        kth = logits.topk(min(params.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if params.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the likelier tokens
        cut = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= params.top_p)
        logits = logits.masked_fill(cut, float("-inf"))
    logprobs = logits.log_softmax(-1)
    cdf = logprobs.double().exp().cumsum(-1)
    ids = torch.searchsorted(cdf, (u[:, None] * cdf[:, -1:]).contiguous(), right=True)[:, 0]
    return ids, logprobs.gather(1, ids[:, None])[:, 0]
