"""The one place that knows where versions of transformers put what the code reads from a model's config.

Every function takes the content of a config.json (a mapping) or a config object of transformers. Whether head and
embedding are one is not read from it: that is a fact about two weights (sapo_vl.model.folder). Rope settings, dtype and
the like go from the folder into the one that is written as they are (sapo_vl.model.export).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

HfConfig = Mapping[str, Any] | PreTrainedConfig
MAX_POSITIONS = 128_000  # class default of Qwen3VLTextConfig and Qwen3VLMoeTextConfig


def max_positions(config: HfConfig) -> int:
    """Tokens of prompt and response together that the language model has positions for."""
    return int(_first(config, "max_position_embeddings") or MAX_POSITIONS)


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
