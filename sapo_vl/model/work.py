"""How much work a row of groups is for a model: what balances micro-batches, in operations and up to a factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sapo_vl.model.loading import base_model

FORWARD_ALONE = 1 / 3  # of forward and backward together, where nothing of the tower learns


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Floating-point operations of a forward pass."""

    token: float  # through the layers of the language model; of experts, those that a token goes through
    target: float  # through the head, for a token that is predicted
    score: float  # for a pair of tokens of which one attends to the other
    patch: float  # through the vision tower
    patch_score: float  # for a pair of patches of one picture

    def of(self, prompt: int, lengths: Sequence[int], patches: Sequence[int]) -> float:
        """Of a prompt with pictures of so many `patches` each, and responses of these `lengths`."""
        total = sum(lengths)
        pairs = prompt * (prompt + 1) / 2 + prompt * total + sum(n * (n + 1) / 2 for n in lengths)
        text = self.token * (prompt + total) + self.target * total + self.score * pairs
        return text + self.patch * sum(patches) + self.patch_score * sum(n * n for n in patches)


def work_of(model: nn.Module) -> Work:
    """Of a Qwen3-VL(-MoE), sharded or not, perhaps inside peft: 2 operations a weight, 4 a pair and channel."""
    inner: Any = base_model(model)
    text, vision = inner.config.get_text_config(), inner.config.vision_config
    experts = getattr(text, "num_experts", 0) or 0
    share = text.num_experts_per_tok / experts if experts else 1.0
    language = sum(
        _size(p) * (share if ".experts." in name else 1.0)
        for name, p in inner.model.language_model.named_parameters()
        if "embed_tokens" not in name  # looked up
    )
    tower = list(inner.model.visual.parameters())
    passes = 1.0 if any(p.requires_grad for p in tower) else FORWARD_ALONE
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Work(
        token=2.0 * language,
        target=2.0 * text.vocab_size * text.hidden_size,
        score=4.0 * text.num_hidden_layers * text.num_attention_heads * head_dim,
        patch=2.0 * passes * sum(map(_size, tower)),
        patch_score=4.0 * passes * vision.depth * vision.hidden_size,
    )


def _size(parameter: Any) -> int:
    """Under ZeRO-3 a weight that is not gathered is empty, and says how large it is."""
    return getattr(parameter, "ds_numel", parameter.numel())
