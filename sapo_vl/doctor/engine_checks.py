"""Checks of vLLM against the trainer, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sapo_vl.distributed import World, init_world
from sapo_vl.doctor import case
from sapo_vl.doctor.base import Inapplicable, Subject, Unfit
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.model.export import save_hf_folder
from sapo_vl.rollout import RolloutConfig, SamplingParams
from sapo_vl.rollout.base import ParityConfig
from sapo_vl.rollout.parity import LIMITS, ParityError, ParityGate, measure
from sapo_vl.rollout.vllm.config import VllmConfig
from sapo_vl.rollout.vllm.contract import VllmMissing, load_contract
from sapo_vl.rollout.vllm.engine import VllmEngine
from sapo_vl.session import Session, open_session
from sapo_vl.types import Prompt

SAMPLING = SamplingParams(n=2, max_new_tokens=8, temperature=1.0, seed=0)
# Parts of the weights, changed one at a time: an engine that does not take one over is told which.
PARTS = ("embed_tokens", "self_attn", "mlp", "norm", "visual")


def vllm_dense(subject: Subject) -> str:
    """vLLM and the trainer agree on a dense model, before and after every part of the weights changed."""
    return _vllm("dense", subject)


def vllm_moe(subject: Subject) -> str:
    """The same for a mixture-of-experts model."""
    return _vllm("moe", subject)


def _vllm(kind: Literal["dense", "moe"], subject: Subject) -> str:
    folder = subject.scratch / f"vllm_{kind}"
    save_hf_folder(case.tiny_model(kind, subject.seed), case.processor(), folder)
    return vllm_agrees(folder, subject.seed)


def vllm_agrees(folder: Path, seed: int) -> str:
    """Log-probs of vLLM and trainer on a model folder, at the start and after every part of the weights changed."""
    try:
        load_contract()
    except VllmMissing as missing:
        raise Inapplicable(str(missing)) from None
    world = init_world()
    session = _open(folder, world, seed)
    assert isinstance(session.rollouts, VllmEngine)
    prompts = case.prompts(session.chat, seed)
    try:
        figures = [f"at start {_check(session, prompts, world, 'at start'):.1e}"]
        for version, part in enumerate(PARTS, start=1):
            case.perturb(session.engine.module.hf, seed + version, part)
            session.rollouts.sync(version)
            figures.append(f"{part} {_check(session, prompts, world, f'after {part} changed'):.1e}")
        return f"largest log-prob gap: {', '.join(figures)}; weights synced by {session.rollouts.sync_method!r}"
    finally:
        session.rollouts.close()


def _open(folder: Path, world: World, seed: int) -> Session:
    return open_session(
        case.MODEL.model_copy(update={"path": str(folder)}),
        OptimConfig(),
        ZeroConfig(stage=0),
        RolloutConfig(engine="vllm", vllm=VllmConfig(max_num_seqs=32), max_new_tokens=16),
        world,
        total_updates=1,
        seed=seed,
    )


def _check(session: Session, prompts: list[Prompt], world: World, when: str) -> float:
    """The largest gap. Raises Unfit beyond the limit, once every way of syncing has been tried."""
    gate = ParityGate(ParityConfig(every=1), session.engine, session.chat, session.rollouts, prompts, world, "float32")
    try:
        gate.check(session.rollouts.weight_version)
    except ParityError as error:
        raise Unfit(
            f"{when}: {error}", "use rollout.engine=transformers, and report the versions of vLLM and torch"
        ) from error
    report = measure(session.engine, session.chat, session.rollouts, prompts, SAMPLING, world)
    if report.refused or report.bad(LIMITS["float32"]):
        raise Unfit(f"{when}: {report}", "use rollout.engine=transformers, and report the versions of vLLM and torch")
    return max(gap.largest for gap in report.gaps.values())
