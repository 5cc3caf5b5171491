"""The one place that knows where versions of transformers put what the code reads from a model's config.

Every function takes the content of a config.json (a mapping) or a config object of transformers. Old folders have
`rope_theta` beside `rope_scaling`, `torch_dtype`, and end-of-turn ids in text_config; new ones have `rope_parameters`,
`dtype`, and leave keys out that hold the default of their class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

HfConfig = Mapping[str, Any] | PreTrainedConfig
MAX_POSITIONS = 128_000  # class default of Qwen3VLTextConfig and Qwen3VLMoeTextConfig
ROPE_THETA = 500_000.0  # of the same classes


def ties_word_embeddings(config: HfConfig) -> bool:
    """Whether the output head is the embedding matrix.

    The top-level key decides, and where it is absent its class default, false: the head belongs to
    Qwen3VL(Moe)ForConditionalGeneration, which ties by its own config. The key in text_config is about a text model
    alone; for Qwen3-VL-MoE transformers 5 fills it with true whatever the folder says.
    """
    return bool(_mapping(config).get("tie_word_embeddings") or False)


def max_positions(config: HfConfig) -> int:
    """Tokens of prompt and response together that the language model has positions for."""
    return int(_first(config, "max_position_embeddings") or MAX_POSITIONS)


def rope_theta(config: HfConfig) -> float:
    """Base of the rotary frequencies: in rope_parameters or rope_scaling if it is there, else beside them."""
    inside = [rope_settings(config).get("rope_theta"), _first(config, "rope_theta")]
    return next((float(value) for value in inside if value is not None), ROPE_THETA)


def rope_settings(config: HfConfig) -> dict[str, Any]:
    """rope_type, mrope_section and the like, from rope_parameters (new) or rope_scaling (old); {} if neither is there.

    The old key "type" for rope_type, and its old value "mrope" for "default", are written the new way.
    """
    found = dict(_first(config, "rope_parameters") or _first(config, "rope_scaling") or {})
    kind = found.pop("type", None)
    if found and found.get("rope_type") is None:
        found["rope_type"] = kind or "default"
    if found.get("rope_type") == "mrope":
        found["rope_type"] = "default"
    return found


def eos_ids(config: HfConfig, generation: HfConfig | GenerationConfig | None = None) -> tuple[int, ...]:
    """End-of-turn ids, each once, from the first place that names any: the generation config, which is what sampling
    goes by, text_config, the top of the config."""
    places = [*([] if generation is None else [_mapping(generation)]), *_sections(config)]
    for place in places:
        given = place.get("eos_token_id")
        ids = given if isinstance(given, list | tuple) else [given]
        if found := tuple(int(i) for i in dict.fromkeys(ids) if i is not None):
            return found
    return ()


def weight_dtype(config: HfConfig) -> str:
    """In which the weights are stored, as "bfloat16" or "float32"; "" if the config does not say."""
    found = next((v for key in ("dtype", "torch_dtype") if (v := _first(config, key)) is not None), "")
    return str(found).removeprefix("torch.")


def uses_cache(config: HfConfig) -> bool:
    """Whether a forward pass keeps keys and values unless it is told not to."""
    found = _first(config, "use_cache")
    return True if found is None else bool(found)


def _first(config: HfConfig, key: str) -> Any:
    """The value of `key` in text_config, else at the top; None if neither has it."""
    return next((v for section in _sections(config) if (v := section.get(key)) is not None), None)


def _sections(config: HfConfig) -> Iterator[Mapping[str, Any]]:
    raw = _mapping(config)
    text = raw.get("text_config")
    if text is not None:
        yield _mapping(text)
    yield raw


def _mapping(config: Any) -> Mapping[str, Any]:
    """A mapping as it is; of an object of transformers (a generation config too) its attributes as a mapping."""
    return config if isinstance(config, Mapping) else config.to_dict()
