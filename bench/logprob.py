"""Log-probs of tokens among 151,936, forward and backward: peak memory against the logits, time against other ways.

"ours" is what `token_logprobs` does at that shape. The others are exact too: "plain" keeps all logits, as
`log_softmax` does; the chunked ones hold so many rows at a time and make them anew in the backward pass. Times are CPU
seconds of one thread, the ways in turn. Memory is the growth of the peak resident size in a process of its own, over
the weight and its gradient, against one float32 copy of the logits [tokens, vocabulary].

Log-probs, entropies and gradients of all ways must agree.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import paired
from memory import in_a_fork, resident, settle
from torch import Tensor

from sapo_vl.model.logprob import token_logprobs

VOCABULARY = 151_936
WIDTHS = (128, 1024, 2048)
CHUNKS = (32, 512)  # beside the default
TOLERANCE = 1e-4  # relative to the largest value
DEVICE = torch.device("cpu")


def inputs(tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [N, H] and weight [V, H], which learn, and targets [N]."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) / width**0.5).requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary, (tokens,))


def ways(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    def way(**settings: Any) -> Callable[[], tuple[Tensor, Tensor]]:
        return lambda: token_logprobs(hidden, weight, targets, temperature=1.0, **settings)

    found = {"ours": way(), "plain": way(chunked=False)}
    return found | {f"chunks of {n}": way(chunked=True, chunk_size=n) for n in CHUNKS}


def times(tokens: int, width: int, vocabulary: int, repeats: int) -> dict[str, float]:
    hidden, weight, targets = inputs(tokens, width, vocabulary)

    def both(forward: Callable[[], tuple[Tensor, Tensor]]) -> None:
        hidden.grad = weight.grad = None
        forward()[0].sum().backward()

    made = ways(hidden, weight, targets)
    return paired({name: lambda f=f: both(f) for name, f in made.items()}, repeats)


def apart(tokens: int, width: int, vocabulary: int) -> float:
    """How far any way is from "plain", relative to the largest value, in what it gives and in its gradients."""
    hidden, weight, targets = inputs(tokens, width, vocabulary)
    slope = torch.linspace(0.5, 1.5, tokens)
    given: dict[str, list[Tensor]] = {}
    for name, forward in ways(hidden, weight, targets).items():
        hidden.grad = weight.grad = None
        logprobs, entropy = forward()
        (logprobs * slope).sum().backward()
        assert hidden.grad is not None and weight.grad is not None
        given[name] = [logprobs.detach(), entropy, hidden.grad, weight.grad]
    exact = given.pop("plain")
    pairs = [(a, b) for other in given.values() for a, b in zip(other, exact, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def peak_bytes(tokens: int, width: int, vocabulary: int) -> int:
    """Of "ours", over what the weight and its gradient take. In a process of its own."""
    ctypes.CDLL("libc.so.6").mallopt(-3, 65536)  # M_MMAP_THRESHOLD: larger blocks go back when they are freed
    hidden, weight, targets = inputs(tokens, width, vocabulary)
    weight.grad = torch.zeros_like(weight)
    before = settle(DEVICE)
    token_logprobs(hidden, weight, targets, temperature=1.0)[0].sum().backward()
    return resident(DEVICE, peak=True) - before


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--tokens", type=int, default=256, help="of the timed passes")
    parser.add_argument("--memory-tokens", type=int, default=4096, help="of the pass whose memory is measured, at 128")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    width = min(args.widths)
    peak = in_a_fork("memory", lambda: peak_bytes(args.memory_tokens, width, args.vocabulary))
    logits = 4 * args.memory_tokens * args.vocabulary
    found: dict[str, Any] = {
        "memory": {"width": width, "peak_mb": peak / 1e6, "of_logits": peak / logits},
        "seconds": {w: times(args.tokens, w, args.vocabulary, args.repeats) for w in args.widths},
        "apart": apart(min(64, args.tokens), width, args.vocabulary),
    }
    if args.json:
        print(json.dumps(found))
    else:
        m = found["memory"]
        print(f"width {width}: peak {m['peak_mb']:.0f} MB over weight and gradient, {m['of_logits']:.3f} of the logits")
        for w, seconds in found["seconds"].items():
            rest = "  ".join(f"{name} {s:.3f}" for name, s in seconds.items())
            print(f"width {w:5d}  {rest}  ours / fastest {seconds['ours'] / min(seconds.values()):.2f}")
    if not found["apart"] < TOLERANCE:
        print(f"the ways differ by {found['apart']:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
