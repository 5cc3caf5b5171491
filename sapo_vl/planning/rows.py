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
    """As many groups as the budget lets in with every prompt and response at its limit; where not even one, as many of
    its responses, at least one."""
    prompt, response = config.model.max_prompt_tokens, config.rollout.max_new_tokens
    return _row(config, prompt, response, patches_of_prompt(m, config))


def mixed_row(m: ModelSizes, config: RunConfig, load: Load) -> Row:
    """The budget filled with groups of mean length."""
    prompt, response = mean_lengths(config, load)
    return _row(config, prompt, response, min(patches_of_prompt(m, config), prompt * m.merge**2))


def rows_of_step(config: RunConfig, row: Row, ranks: int) -> int:
    """Micro-batches of a rank in a step, if all are like `row`."""
    return -(-config.rollout.prompts_per_step * config.rollout.group_size // (ranks * row.responses))


def mean_lengths(config: RunConfig, load: Load) -> tuple[int, int]:
    """(tokens of a prompt, of a response)."""
    return (
        max(1, round(load.prompt_share * config.model.max_prompt_tokens)),
        max(1, round(load.response_share * config.rollout.max_new_tokens)),
    )


def _row(config: RunConfig, prompt: int, response: int, patches: int) -> Row:
    budget, size = config.batch.tokens_per_micro_batch, config.rollout.group_size
    prompts = max(1, budget // (prompt + size * response + patches))
    part = min(size, max(1, (budget - prompt - patches) // response))  # of a group that is alone
    responses = prompts * size if prompts > 1 else part
    return Row(
        tokens=prompts * prompt + responses * response,
        prompts=prompts,
        prompt=prompt,
        responses=responses,
        response=response,
        targets=responses * response,
        patches=prompts * patches,
    )
