"""The model with its log-prob head as one module, so that one forward pass does one job from start to end.

Everything that touches weights goes through `PolicyModule.forward`: under ZeRO-3 the hooks that gather and
release weights hang on modules, and a weight used outside of its module's forward would be an empty tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.kv_cache import KVCache
from sapo_vl.model.loading import base_model
from sapo_vl.model.logprob import law_logits, token_logprobs
from sapo_vl.model.prefix_attention import PrefixLayout
from sapo_vl.model.routing import TAPE, RouteSpec, RouteTape


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Run n prompts, laid in a flat row, and keep their keys and values in `cache`."""

    ids: Tensor  # [1, T]
    positions: Tensor  # [3, 1, T]
    pixel_values: Tensor  # [K, patch_dim]
    image_grid_thw: Tensor  # [I, 3]
    has_images: bool
    layout: PrefixLayout
    cache: KVCache
    last_index: Tensor  # [n] int64, the last token of each prompt in the row


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Run one more token of each of B responses. The token becomes part of `cache`."""

    ids: Tensor  # [B, 1]
    positions: Tensor  # [3, B, 1]
    cache: KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Run a micro-batch and look at the whole vocabulary at some of its response tokens."""

    batch: MicroBatch
    tokens: Tensor  # [n] int64 into its N response tokens


class LogprobHead(nn.Module):
    """The output projection as a module of its own: hidden states to log-probs of given tokens, or to logits."""

    weight: Tensor  # [V, H]
    banned_ids: Tensor  # [n] int64

    def __init__(self, lm_head: nn.Module, banned_ids: Sequence[int]) -> None:
        super().__init__()
        self.weight = cast(nn.Parameter, lm_head.weight)  # the same Parameter, tied or not
        self.register_buffer("banned_ids", torch.tensor(list(banned_ids), dtype=torch.long), persistent=False)

    def forward(
        self, hidden: Tensor, targets: Tensor | None, temperature: float, law: bool = False
    ) -> tuple[Tensor, Tensor]:
        """hidden [N, H], targets [N] -> (log-probs [N], entropy [N]), fp32, of the law that sampling uses.

        Without targets: (logits [N, V] in fp32 with the banned ids at -inf, an empty tensor). They are of temperature 1
        and multiplied in the dtype of the weights; with `law`, those that the log-probs are made of.
        """
        if law:
            return law_logits(hidden, self.weight, temperature, self.banned_ids), hidden.new_empty(0)
        if targets is None:
            logits = torch.nn.functional.linear(hidden, self.weight).float()
            return logits.index_fill(1, self.banned_ids, float("-inf")), hidden.new_empty(0)
        return token_logprobs(hidden, self.weight, targets, temperature=temperature, banned_ids=self.banned_ids)


class PolicyModule(nn.Module):
    """A Qwen3-VL(-MoE) model (perhaps inside peft) and its head. `routes` is what `attach_routing` gave for it."""

    def __init__(self, hf: nn.Module, banned_ids: Sequence[int], routes: RouteSpec | None = None) -> None:
        super().__init__()
        self.hf, self.routes = hf, routes
        self.head = LogprobHead(base_model(hf).lm_head, banned_ids)

    def forward(
        self,
        job: MicroBatch | Prefill | Decode | Vocabulary,
        temperature: float = 1.0,
        tape: RouteTape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """MicroBatch -> (log-probs [N], entropy [N]); Prefill -> (logits [n, V], -); Decode -> (logits [B, V], -);
        Vocabulary -> (logits [n, V] of the law, -).

        A tape records the routing of the pass, or replays one. Raises RouteError if it was not read as it should be.
        """
        extra = {} if tape is None else {TAPE: tape}
        if isinstance(job, Decode):
            hidden = self._text(self._embed(job.ids), job.positions, kv_cache=job.cache, **extra)[:, -1]
        elif isinstance(job, Prefill):
            row = self._flat_row(job, prefix_layout=job.layout, kv_cache=job.cache, **extra)
            hidden = row[0, job.last_index]
        elif isinstance(job, Vocabulary):
            hidden = self._predictors(job.batch, **extra)[job.tokens]
        else:
            hidden = self._predictors(job, **extra)
        if tape is not None:
            tape.close()
        targets = job.targets if isinstance(job, MicroBatch) else None
        return self.head(hidden, targets, temperature, law=isinstance(job, Vocabulary))

    def _predictors(self, job: MicroBatch, **extra: Any) -> Tensor:
        """[N, H] the hidden states that predict the response tokens."""
        flat = job.layout is not None
        rows = self._flat_row(job, prefix_layout=job.layout, **extra) if flat else self._padded_rows(job, **extra)
        return rows.flatten(0, 1)[job.predictor_index]

    def _embed(self, ids: Tensor) -> Tensor:
        return base_model(self.hf).model.language_model.embed_tokens(ids)

    def _text(self, embeds: Tensor, positions: Tensor, **kwargs: Any) -> Tensor:
        text = base_model(self.hf).model.language_model
        # Three rows of positions, not four: the text row would trip the detection of packed sequences.
        return text(inputs_embeds=embeds, position_ids=positions, use_cache=False, **kwargs).last_hidden_state

    def _flat_row(self, job: MicroBatch | Prefill, prefix_layout: PrefixLayout | None, **kwargs: Any) -> Tensor:
        """Hidden states [1, T, H] of a flat row; every image is encoded once."""
        inner = base_model(self.hf)
        embeds = self._embed(job.ids)
        # A row without images still encodes a blank one and adds nothing of it: every rank runs the same
        # modules, so collectives inside them meet and every vision weight has a gradient (of zero).
        vision = inner.model.get_image_features(job.pixel_values, job.image_grid_thw)
        features = torch.cat(list(vision.pooler_output)).to(embeds.dtype)
        deepstack = [torch.cat(list(f)) for f in vision.deepstack_features]
        if not job.has_images:
            nothing = features.sum() * 0.0 + sum(f.sum() * 0.0 for f in deepstack)
            return self._text(embeds + nothing, job.positions, prefix_layout=prefix_layout, **kwargs)
        at = self._image_positions(job.ids, len(features))
        embeds = embeds.masked_scatter(at[..., None], features)
        return self._text(
            embeds,
            job.positions,
            visual_pos_masks=at,
            deepstack_visual_embeds=deepstack,
            prefix_layout=prefix_layout,
            **kwargs,
        )

    def _image_positions(self, ids: Tensor, num_features: int) -> Tensor:
        at = ids == base_model(self.hf).config.image_token_id
        if int(at.sum()) != num_features:
            raise ValueError(
                f"{int(at.sum())} image tokens for {num_features} image features: a prompt was cut or a response holds "
                "an image token"
            )
        return at

    def _padded_rows(self, job: MicroBatch, **kwargs: Any) -> Tensor:
        """Hidden states [B, L, H] through the model's own multimodal forward, every image once per response."""
        inner = base_model(self.hf)
        images = {"pixel_values": job.pixel_values, "image_grid_thw": job.image_grid_thw} if job.has_images else {}
        out = inner.model(
            input_ids=job.ids,
            attention_mask=job.attention_mask,
            position_ids=job.positions,
            mm_token_type_ids=(job.ids == inner.config.image_token_id).int(),
            use_cache=False,
            **images,
            **kwargs,
        )
        hidden = out.last_hidden_state
        if not job.has_images:
            vision = inner.model.get_image_features(job.pixel_values, job.image_grid_thw)
            hidden = hidden + 0.0 * sum(
                f.sum() for fs in (vision.pooler_output, *vision.deepstack_features) for f in fs
            )
        return hidden
