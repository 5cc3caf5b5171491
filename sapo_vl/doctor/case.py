"""A tiny model with prompts and responses, the same for a seed: what the doctor tries an installation on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.tiny import build_tiny, tiny_processor, train_tokenizer
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup

WORDS = ("red", "blue", "how", "many", "circles", "left", "of", "the", "square", "and", "count", "again")
IMAGES: tuple[tuple[tuple[int, int], ...], ...] = (((48, 32),), (), ((32, 64), (32, 32)), ())  # (width, height)
# One image token covers 16 x 16 pixels; the images are multiples of that, so none is resized.
MODEL = ModelConfig(min_pixels=16 * 16, max_pixels=128 * 128, max_prompt_tokens=400)
KINDS: tuple[Literal["dense", "moe"], ...] = ("dense", "moe")


def processor() -> Any:
    return tiny_processor(train_tokenizer([" ".join(WORDS)] * 3 + ["user\n", "assistant\n"], vocab_size=300))


def tiny_model(kind: Literal["dense", "moe"], seed: int) -> Any:
    """Noise on every weight, norms and biases too, so that attention and positions matter."""
    model = build_tiny(kind, processor().tokenizer, seed)
    perturb(model, seed + 1)
    return model.eval()


@torch.no_grad()
def perturb(model: Any, seed: int, part: str = "") -> None:
    """Adds noise to every parameter whose name contains `part`."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if part in name:
            p += 0.05 * torch.randn(p.shape, generator=generator).to(p.device)


def prompts(chat: Chat, seed: int) -> list[Prompt]:
    """One prompt for each row of IMAGES, text-only ones among them."""
    rng = np.random.default_rng(seed)
    return [chat.prompt(_problem(rng, i, sizes)) for i, sizes in enumerate(IMAGES)]


def groups(chat: Chat, seed: int, lengths: Sequence[int] = (5, 9, 2)) -> list[RolloutGroup]:
    """Random responses of these lengths to every prompt, with random advantages."""
    rng = np.random.default_rng(seed)
    allowed = np.setdiff1d(np.arange(len(chat.tokenizer)), chat.banned_ids)
    return [
        RolloutGroup(prompt=p, rollouts=tuple(_rollout(rng, allowed, n) for n in lengths)) for p in prompts(chat, seed)
    ]


def _rollout(rng: np.random.Generator, allowed: np.ndarray, length: int) -> Rollout:
    return Rollout(
        response_ids=rng.choice(allowed, length),
        logprobs=np.full(length, -5.0, np.float32),
        finish=Finish.STOP,
        weight_version=0,
        advantage=float(rng.normal()),
    )


def _problem(rng: np.random.Generator, number: int, sizes: Sequence[tuple[int, int]]) -> Problem:
    parts = [{"type": "text", "text": " ".join(rng.choice(WORDS, 6))}]
    for _ in sizes:
        parts += [{"type": "image"}, {"type": "text", "text": " ".join(rng.choice(WORDS, 3))}]
    pictures = tuple(Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes)
    return Problem(id=f"probe-{number}", task="probe", messages=({"role": "user", "content": parts},), images=pictures)
