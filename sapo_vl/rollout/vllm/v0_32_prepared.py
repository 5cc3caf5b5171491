"""Prompts that one process has prepared for the engine of another, in the wire format of vLLM 0.32.

It is what vLLM's own front ends send to their engines. It unpickles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.inputs.engine import EngineInput, mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
from vllm.sampling_params import RequestOutputKind
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from sapo_vl.rollout.vllm.shared import Bytes


@dataclass(frozen=True)
class Prepared:
    """A prompt after vLLM's processor. The mappings are by modality, and None for text."""

    ids: list[int]  # images expanded
    arrays: MultiModalKwargsItems | None = None
    hashes: Mapping[str, list[str]] | None = None
    places: Mapping[str, list[PlaceholderRange]] | None = None

    def as_input(self) -> EngineInput:
        if self.arrays is None or self.hashes is None or self.places is None:
            return tokens_input(self.ids)
        return mm_input(self.ids, self.arrays, self.hashes, self.places)


def prepare(llm: Any, requests: Sequence[Any]) -> list[Bytes]:
    """The first buffer says where in the others the arrays are, and holds the rest."""
    # Without vLLM's cache, with which an image that this process has seen before would be its name alone.
    inputs = llm.renderer.render_cmpl(list(requests), skip_mm_cache=True)
    parts: Sequence[Any] = MsgpackEncoder().encode([_prepared(i) for i in inputs])
    return [memoryview(part) for part in parts]


def _prepared(given: Any) -> Prepared:
    if given["type"] == "token":
        return Prepared(ids=given["prompt_token_ids"])
    places = {kind: list(found) for kind, found in given["mm_placeholders"].items()}
    return Prepared(given["prompt_token_ids"], given["mm_kwargs"], dict(given["mm_hashes"]), places)


def read(prepared: Sequence[Sequence[Bytes]]) -> list[EngineInput]:
    """The prompts of several calls of `prepare`, one after the other; their arrays stay where they are."""
    decoder = MsgpackDecoder(list[Prepared])
    return [p.as_input() for buffers in prepared for p in decoder.decode(buffers)]


def enqueue(llm: Any, prepared: Sequence[Sequence[Bytes]], params: Sequence[Any]) -> None:
    """What `LLM.enqueue` does, for what `prepare` has prepared."""
    for given, wanted in zip(read(prepared), params, strict=True):
        wanted.output_kind = RequestOutputKind.FINAL_ONLY
        llm.llm_engine.add_request(str(next(llm.request_counter)), given, wanted)
