"""The data that flows between the stages. Every stage takes these and returns these.

    Problem --chat--> Prompt --rollout--> RolloutGroup[Rollout] --scoring, advantage--> RolloutGroup
            --batching--> MicroBatch --policy--> log-probs

Letters used for shapes, here and in the rest of the package:
    P   prompt length in tokens, image tokens expanded        R   response length in tokens
    G   responses in a group                                  V   vocabulary
    T   length of a flat row (prompts and responses of a micro-batch back to back)
    N   response tokens in a micro-batch                      B   responses in a micro-batch
    K   vision patches (before the merger)                    I   images
    L   MoE layers                                            k   experts that a token goes through in each
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image


class Finish(enum.StrEnum):
    """How a response ended."""

    STOP = "stop"  # the model emitted an end-of-turn token
    LENGTH = "length"  # cut at the token limit
    FAILED = "failed"  # the engine returned nothing that can be used


# How the reason of a failed response (Rollout.score_detail) begins where no engine was there to give one. Every other
# reason is of the prompt, or of what was given: it would be the same another time.
NO_ANSWER, NO_SERVER = "no answer", "no server is left"
UNANSWERED = (NO_ANSWER, NO_SERVER)


class ScoreStatus(enum.StrEnum):
    """What became of the attempt to score a response."""

    SCORED = "scored"
    UNSCORABLE = "unscorable"  # the reward itself said it cannot judge this response
    ERROR = "error"  # the reward raised
    TIMEOUT = "timeout"  # the reward ran out of time and its worker was killed
    CRASH = "crash"  # the reward's worker process died


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One row of a recipe's data set."""

    id: str
    task: str
    messages: tuple[Mapping[str, Any], ...]  # chat turns; content is text or parts {"type": "text"|"image"}
    images: Sequence[Image.Image] = ()  # [I] RGB, in the order of the image parts of the messages
    answer: str = ""  # the reference answer, as text
    solution: str = ""  # a full response to imitate in the cold start; "" if there is none
    reward: str = ""  # a key of rewards.REWARDS; "" means: look the task up in the config
    meta: Mapping[str, Any] = field(default_factory=dict)  # JSON-like; whatever the reward needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as the model reads it. Positions are computed once here and carried along."""

    problem: Problem
    ids: np.ndarray  # [P] int64, each image expanded to its tokens (what the trainer feeds)
    compact_ids: np.ndarray  # [<=P] int64, one placeholder per image (what vLLM wants)
    positions: np.ndarray  # [3, P] int64, M-RoPE t/h/w
    pixel_values: torch.Tensor | None  # [K, patch_dim] float32, None for text only
    image_grid_thw: torch.Tensor | None  # [I, 3] int64, None for text only
    images: tuple[Image.Image, ...] = ()  # [I] RGB, resized: what pixel_values was made of (vLLM wants these)

    @property
    def next_position(self) -> int:
        """Position of the first response token on all three axes: 1 + the largest prompt position."""
        return int(self.positions.max()) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled response and, once scored, its reward."""

    response_ids: np.ndarray  # [R] int64, with the end-of-turn token if finish is STOP
    logprobs: np.ndarray  # [R] float32, log p under the law that was sampled from
    finish: Finish
    weight_version: int  # the weights that produced it; 0 = the weights the run started from
    text: str = ""  # what the chat template opened for it ("<think>\n" or nothing), then response_ids decoded
    reward: float | None = None  # None = not scored (see score_status)
    parts: Mapping[str, float] = field(default_factory=dict)  # named parts of the reward
    score_status: ScoreStatus | None = None  # None until scoring ran
    score_detail: str = ""  # the reward's reason ("no answer"), or why it could not be scored
    advantage: float | None = None  # None = takes no part in the update
    # [R - 1, L, k] uint8 or uint16: the experts that its tokens went through, but for the last, which is never fed.
    # None = not recorded.
    routes: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The G responses to one prompt, or some of them: where a group is split its prompt goes with every part."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]  # [G]
    prompt_routes: np.ndarray | None = None  # [P, L, k], as Rollout.routes: once for all G responses

    @property
    def num_tokens(self) -> int:
        """Tokens of the group in a flat row: the prompt once, then every response."""
        return len(self.prompt.ids) + sum(len(r.response_ids) for r in self.rollouts)
