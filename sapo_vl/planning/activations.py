"""Bytes of one forward and backward pass over a flat row: what autograd keeps of a layer, and what comes and goes.

T tokens of a row, of which N are targets. In comments: H hidden width, A query width, K key width, I inner width, E
experts, k of them per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from sapo_vl.model.attention_flex import BLOCK
from sapo_vl.model.logprob import KEPT_MAX_LOGITS, PLAIN_MAX_LOGITS, chunk_tokens
from sapo_vl.planning.sizes import ModelSizes

FLOAT_BYTES, INDEX_BYTES = 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one micro-batch holds."""

    tokens: int
    prompts: int
    prompt: int  # tokens of a prompt, in the mean
    responses: int
    response: int  # tokens of a response, in the mean
    targets: int
    patches: int

    @property
    def scores(self) -> float:
        """Pairs of a query and a key that attend, per head, if all lengths are the mean."""
        return self.prompts * self.prompt**2 / 2 + self.responses * self.response * (self.prompt + self.response / 2)


def layout_bytes(row: Row) -> int:
    """What attention needs to know of a micro-batch, once for all layers: at most two indices a token on a CPU; on a
    GPU two numbers a token and four a pair of blocks."""
    return 2 * INDEX_BYTES * row.tokens + 4 * FLOAT_BYTES * (-(-row.tokens // BLOCK)) ** 2


def attention_saved_bytes(m: ModelSizes, row: Row) -> int:
    """Queries, keys and values, and the log of the sum of each query's scores. The outputs are the input of the
    projection after it."""
    return row.tokens * ((m.query_width + 2 * m.key_width) * m.dtype_bytes + m.heads * FLOAT_BYTES)


def attention_transient_bytes(m: ModelSizes, row: Row) -> int:
    """Of its backward: gradients of queries, keys and values, and of responses that are short enough to run together
    a copy of all that goes in and comes out: 4 A and 4 K."""
    return row.tokens * (5 * m.query_width + 6 * m.key_width) * m.dtype_bytes


def norms_saved_bytes(m: ModelSizes, row: Row) -> int:
    """Of the two norms of a layer, those of queries and keys, and the inputs of the projections after them."""
    normed = 2 * m.hidden_width + m.query_width + m.key_width  # values per token that are normalised
    inputs = 2 * m.hidden_width + m.query_width  # what q/k/v, the gate, and o are given
    scales = 2 + m.heads + m.key_heads  # one number a row that is normalised
    return row.tokens * ((normed + inputs) * m.dtype_bytes + scales * FLOAT_BYTES)


def mlp_saved_bytes(m: ModelSizes, row: Row) -> int:
    """Gate, its activation, up, and their product: 4 I; for experts that and 2 H for each of the k a token goes to."""
    if not m.is_moe:
        return row.tokens * 4 * m.inner_width * m.dtype_bytes
    rows = row.tokens * m.experts_per_token
    values = 4 * m.inner_width + (3 if m.eager_experts else 2) * m.hidden_width
    routing = row.tokens * m.experts * FLOAT_BYTES + 4 * rows * INDEX_BYTES
    return rows * values * m.dtype_bytes + routing


def mlp_transient_bytes(m: ModelSizes, row: Row) -> int:
    """Of its backward: the gradients of product, gate and up, side by side, and one of its input."""
    rows = row.tokens * max(1, m.experts_per_token)
    if m.is_moe and m.eager_experts:  # one expert after the other
        rows = 2 * row.tokens * m.experts_per_token // m.experts
    return rows * (3 * m.inner_width + m.hidden_width) * m.dtype_bytes


def layer_saved_bytes(m: ModelSizes, row: Row) -> int:
    return norms_saved_bytes(m, row) + attention_saved_bytes(m, row) + mlp_saved_bytes(m, row)


def layer_backward_bytes(m: ModelSizes, row: Row) -> int:
    """The most that lives while one layer goes backward: what it keeps, and the gradients on their way."""
    residual = 2 * row.tokens * m.hidden_width * m.dtype_bytes
    kept = layer_saved_bytes(m, row)
    in_mlp = kept + mlp_transient_bytes(m, row)
    in_attention = kept - mlp_saved_bytes(m, row) + attention_transient_bytes(m, row)
    return residual + max(in_mlp, in_attention)


def layer_forward_bytes(m: ModelSizes, row: Row) -> int:
    """The most that lives while one layer runs without gradient: attention, or the gated layer, whichever is wider."""
    attention = attention_saved_bytes(m, row) + row.tokens * (3 * m.query_width + 2 * m.key_width) * m.dtype_bytes
    return row.tokens * 3 * m.hidden_width * m.dtype_bytes + max(attention, _mlp_forward_bytes(m, row))


def _mlp_forward_bytes(m: ModelSizes, row: Row) -> int:
    """Experts: their input, output, what it is weighed to, and that in order again; else as with gradient."""
    if not m.is_moe or m.eager_experts:
        return mlp_saved_bytes(m, row)
    return row.tokens * m.experts_per_token * (4 * m.hidden_width * m.dtype_bytes + 4 * INDEX_BYTES)


def saved_bytes(m: ModelSizes, row: Row, checkpointing: bool) -> int:
    """What is kept of all layers until the backward pass: the input of each, or all that autograd wants."""
    if checkpointing:
        return m.layers * row.tokens * m.hidden_width * m.dtype_bytes
    return m.layers * layer_saved_bytes(m, row)


def head_bytes(m: ModelSizes, row: Row, *, backward: bool) -> int:
    """Of the log-prob head: the hidden states of the targets, logits of a chunk, the weight's gradient in float32."""
    hidden = row.targets * m.hidden_width * m.dtype_bytes
    logits = row.targets * m.vocabulary
    if m.dtype_bytes == FLOAT_BYTES and logits <= PLAIN_MAX_LOGITS:
        return hidden + 4 * logits * FLOAT_BYTES
    at_a_time = chunk_tokens(m.hidden_width, half=m.dtype_bytes < FLOAT_BYTES)
    rows = row.targets if backward and logits <= KEPT_MAX_LOGITS else min(at_a_time, row.targets)
    chunk = 3 * rows * m.vocabulary * FLOAT_BYTES
    if not backward:
        return hidden + chunk
    weight = m.vocabulary * m.hidden_width
    cast = 0 if m.dtype_bytes == FLOAT_BYTES else m.dtype_bytes
    return 2 * hidden + chunk + weight * (2 * FLOAT_BYTES + cast)


def vision_bytes(m: ModelSizes, row: Row, *, backward: bool, checkpointing: bool) -> int:
    """Of the tower: patches, and one layer's values; all layers' if it learns and is not recomputed."""
    width = 8 * m.vision_width + 2 * m.vision_inner_width
    layer = row.patches * width * m.dtype_bytes
    kept = 0
    if backward and m.vision_learning > m.vision // 2:  # the tower itself, not its mergers alone
        kept = m.vision_layers * (row.patches * m.vision_width * m.dtype_bytes if checkpointing else layer)
    return row.patches * m.patch_values * FLOAT_BYTES + layer + kept


def forward_peak_bytes(m: ModelSizes, row: Row) -> int:
    """Of a pass without gradient, weights aside."""
    return layout_bytes(row) + max(
        layer_forward_bytes(m, row),
        head_bytes(m, row, backward=False) + row.tokens * m.hidden_width * m.dtype_bytes,
        vision_bytes(m, row, backward=False, checkpointing=False),
    )


def backward_peak_bytes(m: ModelSizes, row: Row, checkpointing: bool) -> int:
    """Of forward and backward, weights and their gradients aside: at the head, or in the last layer."""
    vision = vision_bytes(m, row, backward=True, checkpointing=checkpointing)
    saved = saved_bytes(m, row, checkpointing)
    at_head = saved + head_bytes(m, row, backward=True)
    in_layer = saved + layer_backward_bytes(m, row)
    if not checkpointing:
        in_layer -= layer_saved_bytes(m, row)
    largest_gradient = m.largest // max(1, m.experts) * m.dtype_bytes
    return layout_bytes(row) + vision + max(at_head, in_layer + largest_gradient)
