"""Whether the lengths that a config allows fit the model and the token budget: known before anything is sampled."""

from __future__ import annotations

from sapo_vl.config import ConfigError, RunConfig
from sapo_vl.evaluation.run import engine_rollout
from sapo_vl.model.folder import ModelFolder, read_config
from sapo_vl.model.hf_config import max_positions


def fitted(config: RunConfig) -> RunConfig:
    """The config with a model.max_prompt_tokens that nobody has set lowered to what the longest response leaves of the
    model's positions, but never below half of them: it is a default that a small model cannot have.

    A config that was saved or printed names every key; there the default value counts as one that nobody has set.
    """
    model, fields = config.model, type(config.model).model_fields
    named = "max_prompt_tokens" in model.model_fields_set
    saved = model.model_fields_set == fields.keys() and model.max_prompt_tokens == fields["max_prompt_tokens"].default
    if not model.path or (named and not saved):
        return config
    positions = max_positions(read_config(model.path, model.revision))
    left = positions - engine_rollout(config).max_new_tokens
    if left >= model.max_prompt_tokens or left < positions // 2:
        return config
    return config.model_copy(update={"model": model.model_copy(update={"max_prompt_tokens": left})})


def check_lengths(config: RunConfig) -> None:
    """Raises ConfigError unless a prompt and a response fit into the model, whatever samples them: vLLM refuses it with
    a traceback, transformers would go on with positions that the model has never seen."""
    positions = max_positions(read_config(config.model.path, config.model.revision))
    limit, longest = config.model.max_prompt_tokens, engine_rollout(config).max_new_tokens
    if longest > config.rollout.max_new_tokens:
        key = f"eval.sampling.max_new_tokens={longest} (or that of eval.preset={config.eval.preset})"
    else:
        key = f"rollout.max_new_tokens={longest}"
    if limit + longest > positions:
        raise ConfigError(
            f"model.max_prompt_tokens={limit} and {key} make {limit + longest} tokens, but the model at "
            f"{config.model.path} has positions for {positions} (max_position_embeddings); lower one of the two by "
            f"{limit + longest - positions}"
        )


def single_rows_over_budget(config: RunConfig, folder: ModelFolder) -> str:
    """What to tell if one response with its prompt can be over the token budget, which a split of groups does not help;
    "" if none can."""
    vision, budget = folder.config.vision_config, config.batch.tokens_per_micro_batch
    merged = vision.spatial_merge_size**2
    prompt, response = config.model.max_prompt_tokens, config.rollout.max_new_tokens
    usual = RunConfig()
    if (
        budget >= usual.batch.tokens_per_micro_batch
        and prompt <= usual.model.max_prompt_tokens
        and response <= usual.rollout.max_new_tokens
        and config.model.max_pixels <= usual.model.max_pixels
    ):
        return ""  # the limits that stand there by default are for the odd row
    patches = min(config.model.max_pixels // (vision.patch_size**2 * merged), prompt) * merged
    if prompt + response + patches <= budget:
        return ""
    return (
        f"batch.tokens_per_micro_batch={budget} is less than one response and its prompt may take: "
        f"model.max_prompt_tokens={prompt} + rollout.max_new_tokens={response} + {patches} vision patches of a "
        f"picture of model.max_pixels={config.model.max_pixels} = {prompt + response + patches}. Such a row goes "
        "alone, and the memory must do for it; raise the budget to that, or lower one of these limits"
    )
