"""One decoder layer of a published size over a flat row, against padded copies of every prompt, against padded
rectangles in place of this device's own attention, and its roofline."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from sapo_vl.model.logprob import token_logprobs
from sapo_vl.model.prefix_attention import SHARED_PREFIX_ATTENTION, Way, build_layout, register_attention
from sapo_vl.planning.published import published_config

GROUP = 16  # responses of a prompt
ROWS_AT_A_TIME = 8  # padded rows that run together
CLASSES = {"qwen3_vl": "Qwen3VLTextModel", "qwen3_vl_moe": "Qwen3VLMoeTextModel"}
Groups = Sequence[tuple[int, Sequence[int]]]  # (tokens of a prompt, tokens of its responses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What this device does, measured: the roofline."""

    flops_per_s: float  # of one large product
    bytes_per_s: float  # read and written by a copy


def seconds(device: str, work: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of some, after one to warm up."""
    work()
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measured_rates(device: str, dtype: torch.dtype) -> Rates:
    size, numbers = (8192, 1 << 28) if device == "cuda" else (128, 1 << 16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    x = torch.empty(numbers, device=device, dtype=torch.float32)
    y = torch.empty_like(x)
    return Rates(
        flops_per_s=2 * size**3 / seconds(device, lambda: a @ b),
        bytes_per_s=2 * 4 * numbers / seconds(device, lambda: y.copy_(x)),
    )


def load(device: str, seed: int = 0) -> list[tuple[int, list[int]]]:
    """Groups as in training: prompts of 400 to 1300 tokens, lognormal responses of mean 600 cut at 2048."""
    rng = np.random.default_rng(seed)
    groups, scale = (2, 1) if device == "cuda" else (1, 40)
    lengths = np.minimum(rng.lognormal(np.log(600) - 0.32, 0.8, (groups, GROUP if scale == 1 else 3)), 2048)
    return [(int(rng.integers(400, 1300)) // scale, [max(1, int(n) // scale) for n in row]) for row in lengths]


def build(name: str, device: str, dtype: torch.dtype) -> Any:
    """A language model of one layer of this size, with random weights and hardly a vocabulary."""
    register_attention()
    config = published_config(name)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size = 1, 64
    if device == "cpu":
        text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 64, 96, 2, 1
        if hasattr(text, "num_experts"):
            text.num_experts, text.num_experts_per_tok, text.moe_intermediate_size = 4, 2, 48
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(transformers, CLASSES[config.model_type])._from_config(text, dtype=dtype)
    return model.train()


def flat(model: Any, groups: Groups, embeds: Tensor, way: Way | None = None) -> Callable[[], Tensor]:
    """Hidden states [T, H] of the flat row; embeds [T, H]. Without `way` it is attended as this device does."""
    layout = build_layout(groups, way).to(embeds.device)
    positions = torch.cat([torch.arange(n) + start for p, rs in groups for start, n in [(0, p), *((p, r) for r in rs)]])
    positions = positions.expand(3, 1, -1).to(embeds.device)
    model.set_attn_implementation(SHARED_PREFIX_ATTENTION)

    def forward() -> Tensor:
        return model(
            inputs_embeds=embeds[None], position_ids=positions, use_cache=False, prefix_layout=layout
        ).last_hidden_state[0]

    return forward


def rows(groups: Groups) -> list[Tensor]:
    """For each response, where its prompt and itself lie in the flat row."""
    out, start = [], 0
    for prompt, responses in groups:
        before = torch.arange(start, start + prompt)
        start += prompt
        for n in responses:
            out.append(torch.cat([before, torch.arange(start, start + n)]))
            start += n
    return out


def padded(model: Any, groups: Groups, embeds: Tensor) -> list[Callable[[], tuple[Tensor, Tensor]]]:
    """Copies of the prompt for each response, padded on the right, some rows at a time: (hidden states [B, L, H],
    where they lie in the flat row [B, L], padding -1)."""
    found, out = sorted(rows(groups), key=len), []
    for i in range(0, len(found), ROWS_AT_A_TIME):
        index = torch.nn.utils.rnn.pad_sequence(found[i : i + ROWS_AT_A_TIME], batch_first=True, padding_value=-1)
        index = index.to(embeds.device)
        positions = torch.arange(index.shape[1], device=embeds.device).expand(3, *index.shape)

        def forward(index: Tensor = index, positions: Tensor = positions) -> tuple[Tensor, Tensor]:
            taken = torch.index_select(embeds, 0, index.clamp(min=0).flatten()).view(*index.shape, -1)
            hidden = model(inputs_embeds=taken, position_ids=positions, attention_mask=index >= 0, use_cache=False)
            return hidden.last_hidden_state, index

        out.append(forward)
    return out


def useful_flops(model: Any, groups: Groups) -> float:
    """Of forward and backward over the flat row, with the scores that are needed and no others."""
    text = model.config
    layer = model.layers[0]
    weights = sum(p.numel() for n, p in layer.named_parameters() if ".experts." not in n)
    if experts := getattr(text, "num_experts", 0):
        weights += sum(p.numel() for p in layer.mlp.experts.parameters()) * text.num_experts_per_tok // experts
    tokens = sum(p + sum(rs) for p, rs in groups)
    scores = sum(p * (p + 1) / 2 + sum(p * r + r * (r + 1) / 2 for r in rs) for p, rs in groups)
    return 3 * (2.0 * tokens * weights + 4.0 * scores * text.num_attention_heads * text.head_dim)


def timed_ways(name: str, device: str) -> dict[str, Any]:
    """Seconds of forward and backward of one layer, flat and padded, and what the roofline says."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    groups = load(device)
    model = build(name, device, dtype)
    tokens = sum(p + sum(rs) for p, rs in groups)
    embeds = torch.randn(tokens, model.config.hidden_size, device=device, dtype=dtype, requires_grad=True)
    rates = measured_rates(device, dtype)
    ways: dict[str, Any] = {"tokens": tokens, "groups": groups, "rates": dataclasses.asdict(rates)}
    row = flat(model, groups, embeds)
    ways["flat"] = _timed(device, lambda: row().sum().backward())
    rectangles = flat(model, groups, embeds, "dense")
    ways["dense"] = _timed(device, lambda: rectangles().sum().backward())
    model.set_attn_implementation("sdpa")
    parts = padded(model, groups, embeds)

    def all_rows() -> None:
        for part in parts:
            part()[0].sum().backward()

    ways["padded"] = _timed(device, all_rows)
    ways["useful_flops"] = useful_flops(model, groups)
    ways["roofline_seconds"] = ways["useful_flops"] / rates.flops_per_s
    ways["share_of_roofline"] = ways["roofline_seconds"] / ways["flat"]["seconds"]
    ways["padded_over_flat"] = ways["padded"]["seconds"] / ways["flat"]["seconds"]
    ways["dense_over_flat"] = ways["dense"]["seconds"] / ways["flat"]["seconds"]
    return ways


def compare(name: str, device: str) -> dict[str, Any]:
    """Forward and backward of one layer both ways, in the dtype of training; and both ways alike, in float32."""
    ways = timed_ways(name, device)
    ways["apart"] = agreement(name, device)
    flat_ms, dense_ms, padded_ms = (ways[name]["seconds"] * 1e3 for name in ("flat", "dense", "padded"))
    gradients = [ways["apart"][name] for name in ("gradient", "dense_gradient")]
    ways["said"] = (
        f"{ways['tokens']} tokens: flat {flat_ms:.1f} ms, its rectangles {dense_ms:.1f} ms, padded {padded_ms:.1f} ms, "
        f"{ways['share_of_roofline']:.0%} of the roofline; gradients {max(gradients):.1e} apart in float32"
    )
    if not all(g < 1e-3 for g in gradients):
        raise RuntimeError(f"flat row, its rectangles and padded rows are not alike: {ways['apart']}")
    return ways


def _timed(device: str, work: Callable[[], object]) -> dict[str, float]:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    found = {"seconds": seconds(device, work)}
    if device == "cuda":
        found["peak_bytes"] = float(torch.cuda.max_memory_allocated() - before)
    return found


def agreement(name: str, device: str) -> dict[str, float]:
    """How far outputs and input gradients of the flat row are from those of padded rows and of its own rectangles, as
    a share of their largest, in float32."""
    exact = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    groups = [(37, [5, 64, 17]), (11, [40, 3]), (130, [300, 7])]
    model = build(name, device, torch.float32)
    if hasattr(model.config, "num_experts"):
        model.set_experts_implementation("eager")
    tokens = sum(p + sum(rs) for p, rs in groups)
    embeds = torch.randn(tokens, model.config.hidden_size, device=device, requires_grad=True)
    slope = torch.randn(tokens, model.config.hidden_size, device=device)
    for where in _prompts(groups):  # a prompt is there once in the flat row, and with every response in the padded ones
        slope[where] = 0
    one = flat(model, groups, embeds)()
    (one * slope).sum().backward()
    gradient, embeds.grad = embeds.grad, None
    dense = flat(model, groups, embeds, "dense")()
    (dense * slope).sum().backward()
    dense_gradient, embeds.grad = embeds.grad, None
    other = torch.zeros_like(one)
    model.set_attn_implementation("sdpa")
    for part in padded(model, groups, embeds):
        hidden, index = part()
        (hidden * slope[index.clamp(min=0)] * (index >= 0)[..., None]).sum().backward()
        other = other.index_copy(0, index[index >= 0], hidden.detach()[index >= 0])
    torch.backends.cuda.matmul.allow_tf32 = exact
    assert gradient is not None and dense_gradient is not None and embeds.grad is not None
    return {
        "output": _apart(one, other),
        "gradient": _apart(gradient, embeds.grad),
        "dense_output": _apart(one, dense),
        "dense_gradient": _apart(gradient, dense_gradient),
    }


def _prompts(groups: Groups) -> list[slice]:
    out, start = [], 0
    for prompt, responses in groups:
        out.append(slice(start, start + prompt))
        start += prompt + sum(responses)
    return out


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def head(device: str, tokens: int, width: int, words: int, chunk: int) -> dict[str, Any]:
    """Forward and backward of the log-prob head."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
    weight = (0.02 * torch.randn(words, width, device=device)).to(dtype).requires_grad_()
    targets = torch.randint(0, words, (tokens,), device=device)
    rates = measured_rates(device, dtype)

    def work() -> None:
        token_logprobs(hidden, weight, targets, temperature=1.0, chunk_size=chunk)[0].sum().backward()

    found: dict[str, Any] = _timed(device, work) | {"tokens": tokens, "rates": dataclasses.asdict(rates)}
    found["roofline_seconds"] = 8.0 * tokens * width * words / rates.flops_per_s  # four products: logits twice
    share = found["roofline_seconds"] / found["seconds"]
    peak = f", peak {found['peak_bytes'] / 1e9:.1f} GB" if device == "cuda" else ""
    return found | {"said": f"{tokens} tokens in {found['seconds'] * 1e3:.0f} ms, {share:.0%} of the roofline{peak}"}
