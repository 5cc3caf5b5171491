"""How responses to a benchmark are sampled, by the names under which results are published.

All of them have a repetition penalty of 1, which is none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Sampling, and how many responses an item gets."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    presence_penalty: float = 0.0
    max_new_tokens: int = 0  # 0 = rollout.max_new_tokens
    seed: int = 0
    k: int = 0  # responses an item; 0 = the benchmark's own number


PRESETS: dict[str, Preset] = {
    # The law that SAPO trains under (arXiv 2511.20347): plain sampling. The number of responses is the benchmark's:
    # AIME25 32, HMMT25 and BeyondAIME 16, LiveCodeBench 8.
    "sapo": Preset(temperature=1.0),
    # https://github.com/QwenLM/Qwen3-VL, README, section "Evaluation Reproduction".
    "qwen3_vl_instruct": Preset(
        temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5, max_new_tokens=32768, seed=3407
    ),
    # The same README. The scripts beside it (evaluation/*/infer_think.sh) use temperature 1.0 instead.
    "qwen3_vl_thinking": Preset(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=40960, seed=1234),
    "greedy": Preset(temperature=0.0, k=1),
}
