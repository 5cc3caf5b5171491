"""What the trainer's own model samples at a time: as much as its memory holds, and more as responses end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

# Bytes per entry of the vocabulary while a token is drawn: logits, log-probs, their sum in float64.
DRAWING_BYTES = 28
PREFILL_TOKENS = 8192  # prompts that are run in one pass; a longer one runs alone
REFILL_SHARE = 0.25  # waiting prompts come in once they are so many of those under way: a pass costs its overhead


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Responses number `first` to `first + count` of a prompt, which are sampled side by side."""

    prompt: int
    first: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is under way."""

    prompts: int = 0
    longest: int = 0  # tokens, of the longest prompt
    responses: int = 0

    def plus(self, prompt_tokens: int, responses: int) -> Held:
        return Held(
            prompts=self.prompts + 1,
            longest=max(self.longest, prompt_tokens),
            responses=self.responses + responses,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory there is, and what takes it. Every response is given room for its full length at once, so that
    none has to be put off later."""

    bytes: int
    token_bytes: int  # keys and values of a token
    vocabulary: int
    max_new_tokens: int

    @property
    def columns(self) -> int:
        """Own tokens that there are buffers for. More than a response has, so that they are seldom copied to let those
        fall that only finished responses saw."""
        return self.max_new_tokens + self.max_new_tokens // 4

    @property
    def response_bytes(self) -> int:
        """Of a response: its keys at full length, and what a token is drawn from."""
        return self.columns * self.token_bytes + self.vocabulary * DRAWING_BYTES

    def need(self, held: Held) -> int:
        """Bytes, with the padding to the longest prompt."""
        return held.prompts * held.longest * self.token_bytes + held.responses * self.response_bytes

    def admit(self, waiting: Sequence[Part], lengths: Sequence[int], held: Held) -> tuple[list[Part], list[Part]]:
        """(the first of `waiting` that fit beside what is held, the rest). `lengths`: tokens of the prompts.

        Where nothing is held, something comes in whatever it takes: a part that does not fit is cut, down to one
        response.
        """
        nothing = not held.prompts
        for i, part in enumerate(waiting):
            more = held.plus(lengths[part.prompt], part.count)
            if self.need(more) <= self.bytes:
                held = more
            elif nothing and i == 0:
                one = self.need(Held().plus(lengths[part.prompt], 1))
                count = max(1, min(part.count, 1 + (self.bytes - one) // self.response_bytes))
                if count == part.count:  # a single response, that does not fit either
                    return [part], list(waiting[1:])
                cut = Part(prompt=part.prompt, first=part.first, count=count)
                rest = Part(prompt=part.prompt, first=part.first + count, count=part.count - count)
                return [cut], [rest, *waiting[1:]]
            else:
                return list(waiting[:i]), list(waiting[i:])
        return list(waiting), []


def one_pass(parts: Sequence[Part], lengths: Sequence[int]) -> int:
    """How many of `parts`, from the first, go into one pass over their prompts."""
    tokens = 0
    for i, part in enumerate(parts):
        tokens += lengths[part.prompt]
        if i and tokens > PREFILL_TOKENS:
            return i
    return len(parts)


def free_share(share: float, device: torch.device) -> int:
    """A share of the memory that is free on this rank's device; on a CPU of what is its part of the host's.

    There it is rounded down to a power of two: what is sampled at a time, and with it the last bits of log-probs, then
    seldom depends on what else runs.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(share * (free + reusable))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 1 << max(20, int(share * psutil.virtual_memory().available / here).bit_length() - 1)
