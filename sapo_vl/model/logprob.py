"""Log-probabilities of given tokens under the sampling law, without the [N, V] logits in memory.

The law is softmax(hidden @ weight.T / temperature) with banned ids at probability 0: exactly what the rollout
engine draws from, so that the ratio of policies is a ratio of the same kind of law.

N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Up to this many logits (16 MB in float32) they are kept: three matrix products instead of four, so faster.
PLAIN_MAX_LOGITS = 4_000_000
# Up to this many (160 MB) the chunked way takes all at once and keeps their law: no logits are computed a second time.
KEPT_MAX_LOGITS = 40_000_000
CHUNK = 128


def chunk_tokens(width: int, *, half: bool) -> int:
    """Tokens whose logits [C, V] are held at a time, for a head [V, width].

    Once a chunk, backward reads and writes the weight's gradient in float32, and in half precision on a GPU (`half`) a
    product of its size. By arithmetic that takes three times as long as the products of 128 tokens do there; with a
    quarter of the width, less, and three such [C, V] are still smaller than the gradient. bench/gpu.sh measures it. On
    a CPU products are what takes time, and no other length was faster.
    """
    return max(CHUNK, width // 4) if half else CHUNK


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    banned_ids: Tensor | None = None,
    chunk_size: int | None = None,
    chunked: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target [N] and entropy of each position [N] in nats, float32; no gradient of the
    entropy.

    hidden [N, H] and weight [V, H] (the output head, which may be tied to the embedding) in any floating
    dtype; logits are float32. targets [N] and banned_ids [n] are int64. hidden[i] must be the state that
    predicts targets[i].

    chunked: None chooses by size. The chunked way holds [chunk_size, V] twice at a time (default: `chunk_tokens`) and
    recomputes logits in backward, unless there are few (KEPT_MAX_LOGITS). For its gradient it keeps `weight` itself and
    no copy, so the storage may be released and refilled in between (ZeRO-3).

    Raises ValueError for a shape that does not fit, a temperature <= 0, a chunk_size < 1, and for a target
    that is outside [0, V) or banned, naming its position.
    """
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    keeps = learns and targets.numel() * weight.shape[0] <= KEPT_MAX_LOGITS
    if chunk_size is None:
        half = _half(hidden, (hidden, weight)) is not None
        chunk_size = max(1, targets.numel()) if keeps else chunk_tokens(weight.shape[-1], half=half)
    _check(hidden, weight, targets, temperature, banned_ids, chunk_size)
    if chunked is None:
        # A half-precision head would be copied to float32 by the plain way; chunks can use it as it is.
        chunked = targets.numel() * weight.shape[0] > PLAIN_MAX_LOGITS or weight.dtype != torch.float32
    # Autocast would round the logits to half precision.
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        if chunked:
            return _ChunkedLogprobs.apply(hidden, weight, targets, temperature, banned_ids, chunk_size, keeps)
        return _plain(hidden, weight, targets, temperature, banned_ids)


def _plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, banned_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by log_softmax over all N rows at once, differentiated automatically."""
    logits = F.linear(hidden.float(), weight.float()) / temperature  # [N, V]
    if banned_ids is not None:
        logits = logits.index_fill(1, banned_ids, float("-inf"))
    log_law = logits.log_softmax(dim=-1)
    with torch.no_grad():
        law = log_law.exp()
        entropy = -torch.where(law > 0, law * log_law, 0.0).sum(dim=-1)  # 0 * -inf would be NaN
    return log_law.gather(1, targets[:, None])[:, 0], entropy


class _ChunkedLogprobs(torch.autograd.Function):
    """d logp_i / d logits_i = onehot(target_i) - law_i, chunk by chunk, from logits that are kept or recomputed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        banned_ids: Tensor | None,
        chunk_size: int,
        keeps: bool,
    ) -> tuple[Tensor, Tensor]:
        size = targets.numel()
        logprobs = torch.empty(size, dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        log_norm = torch.empty_like(logprobs)  # [N] log of the sum over the vocabulary
        kept: list[Tensor] = []  # [C, V] the law of each chunk
        for start in range(0, size, chunk_size):
            part = slice(start, start + chunk_size)
            logits = law_logits(hidden[part], weight, temperature, banned_ids)
            largest = logits.amax(dim=-1, keepdim=True)
            law = (logits - largest).exp_()
            total = law.sum(dim=-1, keepdim=True)
            log_norm[part] = (largest + total.log())[:, 0]
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - log_norm[part]
            if banned_ids is not None:
                logits.index_fill_(1, banned_ids, 0.0)  # their law is 0, and 0 * -inf would be NaN
            entropy[part] = log_norm[part] - torch.linalg.vecdot(law, logits) / total[:, 0]
            if keeps:
                kept.append(law.div_(total))
        ctx.save_for_backward(hidden, weight, targets, banned_ids, log_norm, *kept)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, banned_ids, log_norm, *kept = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        # float32 whatever the dtype of the weight: a long sum loses its small terms in bfloat16.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        for i, start in enumerate(range(0, targets.numel(), ctx.chunk_size)):
            part = slice(start, start + ctx.chunk_size)
            scale = (grad[part] / ctx.temperature)[:, None]
            if kept:
                slope = kept[i] * -scale
            else:
                slope = law_logits(hidden[part], weight, ctx.temperature, banned_ids)
                slope.sub_(log_norm[part, None]).exp_().mul_(-scale)
            # [C, V] d loss / d (hidden @ weight.T) = scale * (onehot - law)
            slope.scatter_add_(1, targets[part, None], scale)
            if grad_hidden is not None:
                grad_hidden[part] = _matmul(slope, weight, like=(hidden, weight)).to(hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, slope.t(), hidden[part], like=(hidden, weight))
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def law_logits(hidden: Tensor, weight: Tensor, temperature: float, banned_ids: Tensor | None) -> Tensor:
    """[C, V] float32 logits of the law, temperature included, banned ids at -inf.

    A tensor of its own, free to be written to.
    """
    logits = _matmul(hidden, weight.t(), like=(hidden, weight))
    if temperature != 1.0:
        logits.div_(temperature)
    if banned_ids is not None:
        logits.index_fill_(1, banned_ids, float("-inf"))
    return logits


def _matmul(a: Tensor, b: Tensor, *, like: tuple[Tensor, Tensor]) -> Tensor:
    """a @ b in float32.

    On CUDA, if both tensors in `like` are of one half-precision dtype, the operands are of that dtype: the
    tensor cores still sum in float32, and the head is not copied."""
    if (half := _half(a, like)) is not None:
        return torch.mm(a.to(half), b.to(half), out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, like: tuple[Tensor, Tensor]) -> None:
    """total += a @ b, as `_matmul` takes it; in float32 without a copy of the size of `total`, the weight's."""
    if _half(a, like) is not None:
        total += _matmul(a, b, like=like)
    else:
        total.addmm_(a.float(), b.float())


def _half(a: Tensor, like: tuple[Tensor, Tensor]) -> torch.dtype | None:
    first, second = like
    fits = a.is_cuda and first.dtype == second.dtype and first.dtype in (torch.bfloat16, torch.float16)
    return first.dtype if fits else None


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    banned_ids: Tensor | None,
    chunk_size: int,
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [N, H] and weight [V, H], got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be [{hidden.shape[0]}] int64 to fit hidden, got {tuple(targets.shape)} {targets.dtype}"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature is {temperature}; it must be the positive one that the responses were sampled at"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    if banned_ids is not None and (banned_ids.dim() != 1 or banned_ids.dtype != torch.int64):
        raise ValueError(f"banned_ids must be one-dimensional int64, got {tuple(banned_ids.shape)} {banned_ids.dtype}")
    _check_targets(targets, weight.shape[0], banned_ids)


def _check_targets(targets: Tensor, vocab_size: int, banned_ids: Tensor | None) -> None:
    """One device sync; without it an id out of range is a device assert and a banned one a silent -inf."""
    wrong = (targets < 0) | (targets >= vocab_size)
    if banned_ids is not None:
        wrong |= torch.isin(targets, banned_ids)
    if not bool(wrong.any()):
        return
    position = int(wrong.nonzero()[0, 0])
    target = int(targets[position])
    if not 0 <= target < vocab_size:
        raise ValueError(f"targets[{position}] is {target}, outside the vocabulary [0, {vocab_size})")
    raise ValueError(
        f"targets[{position}] is the banned id {target}, which has probability 0; "
        "the sampler must ban the same ids as the trainer"
    )
