"""Writing the trained model as a Hugging Face folder, and proof that the folder is the model.

The folder is read back before it gets its name: the same names, shapes and values as the weights that were sent, a
config, processor and generation settings that load, and the log-probs of a probe from a model made of the files alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig

from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.weights import hub_weights
from sapo_vl.model.batching import MicroBatch, pack
from sapo_vl.model.chat import Chat, check_tokenizer, load_processor
from sapo_vl.model.export import carried_files, export_layout, put_in_place
from sapo_vl.model.folder import (
    EXPERT_WEIGHTS,
    GENERATION,
    HEAD,
    Layout,
    ModelError,
    ModelFolder,
    examine,
    write_weights,
)
from sapo_vl.model.loading import ModelConfig, map_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.prompt_errors import PromptError
from sapo_vl.types import Finish, Problem, Rollout, RolloutGroup

log = logging.getLogger(__name__)

# Largest mean |difference| of the probe's log-probs. The values are compared by digest: what is left is a config or a
# layout that is read otherwise. In bfloat16 the trainer may be on an accelerator, with other kernels than those of the
# CPU and routers that choose other experts; that has not been measured, so the limit leaves room.
PROBE_LIMITS = {"float32": 1e-3, "bfloat16": 0.3}
Noted = tuple[tuple[int, ...], str]  # shape and digest of a weight
T = TypeVar("T")


class ExportError(RuntimeError):
    """The written model is not the trained one, or could not be written. Says where what was written is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was compared when a model folder was read back."""

    weights: int
    bytes: int
    digest: str  # over names, shapes and values of all weights
    probe_gap: float | None  # mean |difference| of log-probs; None: not taken
    probe: str  # "", or why it was not taken


@dataclass(frozen=True, slots=True)
class Asked:
    """A probe and what the trained model says to it."""

    batch: MicroBatch
    logprobs: Tensor  # [N] fp32
    banned_ids: Sequence[int]


def save_model(engine: PolicyEngine, folder: ModelFolder, dtype: str, out: Path, probe: MicroBatch | None) -> Proof:
    """Writes the policy, adapters merged, to `out`, reads it back, and gives it its name. All ranks together.

    `probe` is a small micro-batch, equal on all ranks (`make_probe`). Raises ExportError, on all ranks, if the disk
    fails or the folder is not the model; what was written is then kept beside `out`, and an older `out` stays.
    """
    world = engine.world
    beside = out.with_name(f".{out.name}.writing-{os.getpid()}")
    asked: Asked | str = "no probe could be made a prompt"
    if probe is not None:
        asked = Asked(
            probe, engine.logprobs([probe], probe)[0][0].float().cpu(), engine.module.head.banned_ids.tolist()
        )
    weights = hub_weights(engine)
    if engine.zero.stage < 3:  # the main rank has all of them
        fault, proof = world.of_main(lambda: _attempt(lambda: write_proved(weights, folder, dtype, beside, asked)))
    else:
        fault, sent = _attempt(lambda: _write(weights, folder, dtype, beside)) if world.is_main else ("", None)
        for _ in weights:  # of what the main rank did not take: the other ranks gather along
            pass
        fault, proof = world.of_main(
            lambda: (fault, None) if fault else _attempt(lambda: _prove(beside, folder, dtype, sent or {}, asked))
        )
    if fault:
        kept = world.gather(_keep_unproved(beside, out) if world.is_main else "")[0]
        raise ExportError(f"{out} was not written: {fault}{kept}")
    if world.is_main:
        put_in_place(beside, out)
    world.barrier()
    assert proof is not None
    return proof


def write_proved(
    weights: Iterator[tuple[str, Tensor]], folder: ModelFolder, dtype: str, beside: Path, asked: Asked | str
) -> Proof:
    """Writes `weights`, which have the hub's names and layout, as the folder `beside` of a model trained from `folder`,
    and reads it back. `asked`: the probe, or why there is none.

    Raises OSError or SafetensorError if the disk fails, ModelError if the folder is not the model.
    """
    return _prove(beside, folder, dtype, _write(weights, folder, dtype, beside), asked)


def tried_probe(engine: PolicyEngine, chat: Chat) -> MicroBatch | None:
    """`make_probe`, and the model has answered it: what it cannot run here is known before anything is trained, not
    when the model is to be written. All ranks together."""
    probe = make_probe(chat)
    if probe is not None:
        engine.logprobs([probe], probe)
    return probe


def make_probe(chat: Chat) -> MicroBatch | None:
    """A prompt with a picture and one without, and eight random tokens after each; made before the first step.

    One that the template or the limits on prompts do not allow is left out; None if neither is left.
    """
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8))
    allowed = np.setdiff1d(np.arange(len(chat.tokenizer)), chat.banned_ids)
    groups = []
    for images in ((picture,), ()):
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": "What is this?"}]
        problem = Problem(id="probe", task="probe", messages=({"role": "user", "content": content},), images=images)
        try:
            prompt = chat.prompt(problem)
        except PromptError as error:
            log.warning("what is written at the end will not be probed with this: %s", error)
            continue
        response = Rollout(
            response_ids=random.choice(allowed, 8),
            logprobs=np.zeros(8, np.float32),
            finish=Finish.LENGTH,
            weight_version=0,
        )
        groups.append(RolloutGroup(prompt=prompt, rollouts=(response,)))
    return pack(groups, chat.blank_pixels()) if groups else None


def _attempt(action: Callable[[], T]) -> tuple[str, T | None]:
    """(what went wrong with the disk or the folder, or "", what `action` gave)."""
    try:
        return "", action()
    except (OSError, SafetensorError, ModelError) as error:
        return str(error) or type(error).__name__, None


def _write(weights: Iterator[tuple[str, Tensor]], folder: ModelFolder, dtype: str, beside: Path) -> dict[str, Noted]:
    """Writes the folder; what was sent to the disk, by name."""
    sent: dict[str, Noted] = {}
    _start(beside, folder, dtype)
    write_weights(_noted(_in_layout(weights, export_layout(folder), tied=folder.tied), sent), beside)
    return sent


def _start(beside: Path, folder: ModelFolder, dtype: str) -> None:
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    files, repairs = carried_files(folder, dtype)
    for repair in repairs:
        log.warning("%s", repair)
    for name, content in files.items():
        (beside / name).write_bytes(content)


def _in_layout(weights: Iterator[tuple[str, Tensor]], layout: Layout, *, tied: bool) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights:
        if tied and name == HEAD:
            continue
        turn = layout == "runtime" and name.endswith(EXPERT_WEIGHTS)
        yield name, value.transpose(1, 2) if turn else value


def _noted(weights: Iterator[tuple[str, Tensor]], sent: dict[str, Noted]) -> Iterator[tuple[str, Tensor]]:
    """The same weights; what passes is written down as (shape, digest)."""
    for name, value in weights:
        value = value.detach().to("cpu").contiguous()
        sent[name] = (tuple(value.shape), tensor_digest(value))
        yield name, value


def tensor_digest(value: Tensor) -> str:
    """Of the bytes of a contiguous CPU tensor."""
    return hashlib.blake2b(value.view(-1).view(torch.uint8).numpy().data, digest_size=16).hexdigest()


def _prove(
    beside: Path,
    folder: ModelFolder,
    dtype: str,
    sent: Mapping[str, Noted],
    asked: Asked | str,
) -> Proof:
    written = examine(str(beside))
    if written.tied != folder.tied:
        raise ModelError(
            f"head and embedding are {'one' if written.tied else 'two'} in what was written, not as trained"
        )
    check_values(beside, sent)
    check_tokenizer(load_processor(str(beside)), written)
    if (beside / GENERATION).exists():
        GenerationConfig.from_pretrained(beside)
    gap, why_not = (None, asked) if isinstance(asked, str) else (_probe_gap(written, dtype, asked), "")
    if gap is not None and not gap <= PROBE_LIMITS[dtype]:
        raise ModelError(
            f"a model loaded from what was written gives log-probs {gap:.3g} from the trained model's on average, more "
            f"than {PROBE_LIMITS[dtype]}, though its weights are the trained ones: config or layout is read otherwise"
        )
    every = hashlib.blake2b(repr(sorted(sent.items())).encode(), digest_size=16).hexdigest()
    return Proof(weights=len(sent), bytes=written.stored_bytes, digest=every, probe_gap=gap, probe=why_not)


def check_values(folder: Path, sent: Mapping[str, Noted]) -> None:
    """Raises ModelError unless the files hold exactly the weights that were sent, by name, shape and digest."""
    found: dict[str, Noted] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118
                value = f.get_tensor(name)
                found[name] = (tuple(value.shape), tensor_digest(value))
    wrong = sorted(name for name in set(sent) | set(found) if sent.get(name) != found.get(name))
    if wrong:
        raise ModelError(f"{len(wrong)} weights were not read back as they were written: {', '.join(wrong[:4])}")


def _probe_gap(written: ModelFolder, dtype: str, asked: Asked) -> float:
    loaded = map_model(ModelConfig(path=str(written.path), dtype=dtype), written)  # type: ignore[arg-type]
    with torch.no_grad():
        given = PolicyModule(loaded, asked.banned_ids).eval()(asked.batch)[0].float()
    return float((given - asked.logprobs).abs().mean())


def _keep_unproved(beside: Path, out: Path) -> str:
    if not beside.exists():
        return ""
    kept = out.with_name(f"{out.name}_unproved")
    shutil.rmtree(kept, ignore_errors=True)
    beside.rename(kept)
    return f". What was written is kept in {kept}"


def proof_values(proof: Proof) -> dict[str, Any]:
    """As summary.json has it."""
    return {
        "weights": proof.weights,
        "bytes": proof.bytes,
        "digest": proof.digest,
        "probe_logprob_gap": proof.probe_gap,
        **({"probe_not_taken": proof.probe} if proof.probe else {}),
    }
