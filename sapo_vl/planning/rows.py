"""The micro-batches that a plan reckons with: what the token budget lets one be."""

from __future__ import annotations

from sapo_vl.config import RunConfig
from sapo_vl.planning.activations import Row
from sapo_vl.planning.machine import Load
from sapo_vl.planning.sizes import ModelSizes


def image_tokens(m: ModelSizes, config: RunConfig) -> int:
    """Of the largest picture."""
    return config.model.max_pixels // (m.patch_pixels * m.merge) ** 2


def patches_of_prompt(m: ModelSizes, config: RunConfig) -> int:
    return min(image_tokens(m, config), config.model.max_prompt_tokens) * m.merge**2


def full_row(m: ModelSizes, config: RunConfig) -> Row:
    """As many groups as the budget lets in, at least one, with every prompt and response at its limit."""
    prompt, response, size = config.model.max_prompt_tokens, config.rollout.max_new_tokens, config.rollout.group_size
    patches = patches_of_prompt(m, config)
    groups = max(1, config.batch.tokens_per_micro_batch // (prompt + size * response + patches))
    return _row(groups, prompt, response, size, prompt, response, patches)


def mixed_row(m: ModelSizes, config: RunConfig, load: Load) -> Row:
    """The budget filled with groups of mean length, and among them a prompt and a response at the limit: everything in
    the rectangles is padded to those."""
    longest, cap, size = config.model.max_prompt_tokens, config.rollout.max_new_tokens, config.rollout.group_size
    prompt, response = mean_lengths(config, load)
    patches = min(patches_of_prompt(m, config), prompt * m.merge**2)
    groups = max(1, config.batch.tokens_per_micro_batch // (prompt + size * response + patches))
    return _row(groups, prompt, response, size, longest, cap, patches)


def mean_lengths(config: RunConfig, load: Load) -> tuple[int, int]:
    """(tokens of a prompt, of a response)."""
    return (
        max(1, round(load.prompt_share * config.model.max_prompt_tokens)),
        max(1, round(load.response_share * config.rollout.max_new_tokens)),
    )


def _row(groups: int, prompt: int, response: int, size: int, longest: int, cap: int, patches: int) -> Row:
    return Row(
        tokens=groups * (prompt + size * response),
        prompts=groups,
        longest_prompt=longest,
        responses=groups * size,
        longest_response=cap,
        targets=groups * size * response,
        patches=groups * patches,
    )
