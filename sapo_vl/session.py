"""What the cold start, the training and the evaluation have in common: model, processor, engine, rollouts."""

from __future__ import annotations

import functools
import logging
import platform
import random
import resource
import subprocess
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.integrations import HfDeepSpeedConfig
from transformers.utils import logging as hf_logging

from sapo_vl.distributed import World
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.inference import for_inference, inference_config
from sapo_vl.learning.optim import ON_CPU, OptimConfig, Tuning, ZeroConfig, deepspeed_config
from sapo_vl.learning.tuning import tune
from sapo_vl.learning.weights import check_manifests, hub_adapters, hub_weights, manifest
from sapo_vl.model.chat import Chat
from sapo_vl.model.folder import ModelFolder, examine, is_moe
from sapo_vl.model.loading import DTYPES, ModelConfig, ModelError, base_model, load_model, load_without_weights
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.reading import folder_weights
from sapo_vl.model.routing import Replay, RouteSpec, attach_routing
from sapo_vl.rollout import RolloutConfig, RolloutEngine, TransformersEngine
from sapo_vl.rollout.schedule import free_share
from sapo_vl.rollout.vllm.adapters import AdapterSource
from sapo_vl.rollout.vllm.contract import check_route_source
from sapo_vl.rollout.vllm.engine import VllmEngine
from sapo_vl.rollout.vllm.server import VllmServerEngine
from sapo_vl.rollout.vllm.transfer import Weights

log = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "datasets", "peft", "qwen-vl-utils", "pillow")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSession:
    """A model to sample from, on all ranks."""

    world: World
    folder: ModelFolder  # where the model came from
    chat: Chat
    rollouts: RolloutEngine
    tuning: Tuning = ON_CPU  # how DeepSpeed works here


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(SamplingSession):
    """A loaded policy on all ranks, with the engine that trains it and the one that samples from it."""

    engine: PolicyEngine


def open_session(
    model_config: ModelConfig,
    optim: OptimConfig,
    zero: ZeroConfig,
    rollout: RolloutConfig,
    world: World,
    *,
    total_updates: int,
    seed: int,
    out: Path | None = None,
    replay: Replay = "none",
) -> Session:
    """Loads the model once on every rank (sharded while reading with ZeRO-3) and wraps it for training.

    `out` is the run folder, in which a rollout engine may need room. Raises ModelError for a `replay` that the model
    or the rollout engine cannot give, before weights are read where the folder tells.
    """
    if not model_config.path:
        raise ModelError("model.path is empty; give a Hugging Face model folder, or build one with `sapo-vl init-tiny`")
    folder = examine(model_config.path, model_config.revision)
    model_config = model_config.model_copy(update={"path": str(folder.path)})
    check_replay(replay, folder, rollout, world.device.type)
    seed_everything(seed, world.rank)
    # transformers shards weights while it reads them only as long as this object lives.
    tuning = tune(optim, zero, world)
    settings = deepspeed_config(optim, zero, model_config.dtype, tuning)
    sharding = HfDeepSpeedConfig(settings) if zero.stage == 3 else None
    model = load_model(model_config, folder, world.device)
    chat = _chat(model, model_config, rollout)
    routes = _routes(model, replay)
    policy = PolicyModule(model, chat.banned_ids, routes).to(world.device)
    engine = PolicyEngine(policy, optim, zero, model_config.dtype, world, total_updates, tuning)
    del sharding
    wanted = routes if replay == "r3" else None
    rollouts = open_rollouts(model_config, folder, rollout, chat, engine, world, out, wanted)
    return Session(world=world, folder=folder, chat=chat, engine=engine, rollouts=rollouts, tuning=tuning)


def open_sampling(
    model_config: ModelConfig,
    zero: ZeroConfig,
    rollout: RolloutConfig,
    world: World,
    *,
    seed: int,
    gpu_share: float,
    out: Path | None = None,
) -> SamplingSession:
    """A model that is only sampled from: no optimizer, no gradients.

    With the engine "transformers" its weights are loaded, in pieces under ZeRO-3; vLLM in process reads the folder
    itself, at `gpu_share` of a GPU's memory and without sleeping, and servers are handed what is in it: nothing of the
    model is loaded here then. `out` as for `open_session`. Raises ModelError.
    """
    folder = examine(model_config.path, model_config.revision)
    as_it_is = {"path": str(folder.path), "lora": None, "freeze": (), "gradient_checkpointing": False}
    model_config = model_config.model_copy(update=as_it_is)
    vllm = rollout.vllm.model_copy(update={"gpu_memory_utilization": gpu_share, "sleep": False})
    rollout = rollout.model_copy(update={"vllm": vllm})
    seed_everything(seed, world.rank)
    if rollout.engine != "transformers":
        chat = _chat(load_without_weights(folder), model_config, rollout)
        weights = functools.partial(folder_weights, folder, DTYPES[model_config.dtype])
        engine = _open_vllm(model_config, folder, rollout, chat, weights, world, out)
        return SamplingSession(world=world, folder=folder, chat=chat, rollouts=engine)
    sharding = HfDeepSpeedConfig(inference_config(zero, model_config.dtype)) if zero.stage == 3 else None
    model = load_model(model_config, folder, world.device)
    chat = _chat(model, model_config, rollout)
    policy = for_inference(PolicyModule(model, chat.banned_ids), zero, model_config.dtype, world)
    del sharding
    own = _own_engine(policy, chat, rollout, zero.stage, world)
    return SamplingSession(world=world, folder=folder, chat=chat, rollouts=own)


def open_rollouts(
    model_config: ModelConfig,
    folder: ModelFolder,
    config: RolloutConfig,
    chat: Chat,
    engine: PolicyEngine,
    world: World,
    out: Path | None,
    routes: RouteSpec | None = None,
) -> RolloutEngine:
    """The configured engine. Raises ManifestError if it would not take the trainer's weights, by name or shape.

    `routes`: vLLM must return the experts of each token, as this describes them.
    """
    if config.engine == "transformers":
        return _own_engine(engine.module, chat, config, engine.zero.stage, world)
    check_manifests(manifest(engine), {name: weight.shape for name, weight in folder.weights.items()})
    weights = functools.partial(hub_weights, engine)
    adapters = None
    if config.server.adapters_only and model_config.lora is not None:
        adapters = AdapterSource(functools.partial(hub_adapters, engine), folder.path, folder.stored_bytes)
    return _open_vllm(model_config, folder, config, chat, weights, world, out, routes, adapters)


def _chat(model: torch.nn.Module, config: ModelConfig, rollout: RolloutConfig) -> Chat:
    """Prompts that the rollout engine cannot take are bad rows, and no fault of the engine in the middle of a run."""
    chat = Chat.load(model, config)
    chat.max_images = 0 if rollout.engine == "transformers" else rollout.vllm.max_images_per_prompt
    return chat


def _own_engine(policy: PolicyModule, chat: Chat, config: RolloutConfig, stage: int, world: World) -> RolloutEngine:
    return TransformersEngine(
        policy,
        chat,
        device=world.device,
        cache_bytes=functools.partial(free_share, config.cache_share, world.device),
        most=functools.partial(_most, world) if stage == 3 else int,
        shared_weights=stage == 3,
    )


def _open_vllm(
    model_config: ModelConfig,
    folder: ModelFolder,
    config: RolloutConfig,
    chat: Chat,
    weights: Weights,
    world: World,
    out: Path | None,
    routes: RouteSpec | None = None,
    adapters: AdapterSource | None = None,
) -> RolloutEngine:
    """vLLM in process, or servers; a sync hands `weights` over, to servers `adapters` if there are."""
    expected = {name: weight.shape for name, weight in folder.weights.items()}
    limits: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "max_failed_share": config.max_failed_share,
        "routes": routes,
    }
    if config.engine == "vllm":
        return VllmEngine(model_config, config.vllm, chat, weights, expected, world, **limits)
    if out is None:
        raise ValueError("rollout.engine=vllm_server needs a run folder to hand weights over in")
    limits["adapters"] = adapters
    return VllmServerEngine(model_config, config.server, chat, weights, expected, world, out, **limits)


def _most(world: World, number: int) -> int:
    return int(world.max(number))


def check_replay(replay: Replay, folder: ModelFolder, rollout: RolloutConfig, device: str) -> None:
    """Raises ModelError if the model cannot replay, and RoutesMissing if vLLM in this process returns no routes.

    A server answers for itself, when it is asked for its settings.
    """
    if replay != "none" and not is_moe(folder.config):
        raise ModelError(f"replay={replay}: {folder.path} is a dense model, it has no experts; use replay=none")
    if replay == "r3" and rollout.engine == "vllm":
        check_route_source(rollout.engine, on_cpu=device == "cpu", tensor_parallel=rollout.vllm.tensor_parallel)


def _routes(model: torch.nn.Module, replay: Replay) -> RouteSpec | None:
    """What the routing of this model looks like. Without replay it is for a metric, and not worth a run."""
    try:
        return attach_routing(base_model(model))
    except ModelError as fault:
        if replay != "none":
            raise ModelError(f"replay={replay}: {fault}") from None
        log.warning("routes are not recorded: %s", fault)
        return None


def seed_everything(seed: int, rank: int) -> None:
    """Each rank its own stream. Rollouts do not depend on it: their randomness is named by problem and step."""
    random.seed(seed * 1009 + rank)
    np.random.seed((seed * 1009 + rank) % 2**32)
    torch.manual_seed(seed * 1009 + rank)


def setup_logging(world: World) -> None:
    """Info from the main rank, warnings from all; library chatter off."""
    logging.basicConfig(format=f"%(asctime)s rank {world.rank} %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("sapo_vl").setLevel(logging.INFO if world.is_main else logging.WARNING)
    quiet_libraries()


def quiet_libraries() -> None:
    """Progress bars and notices of the libraries off; their errors stay."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    # Collectives that torch renamed; DeepSpeed still calls them by the old names, once per parameter and step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def versions() -> dict[str, str]:
    """Of Python and the packages that results depend on, and the commit of this code ("commit")."""
    found = {"python": platform.python_version(), "sapo_vl": _version("sapo-vl"), "commit": _commit()}
    return found | {name: _version(name) for name in PACKAGES}


def _commit() -> str:
    """Of the repository that this package is in, with "+changes" if files differ from it; "" where it is installed:
    a repository around the environment is another one's."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> Any:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)

    try:
        head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return ""
    if head.returncode:
        return ""
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def peak_memory(world: World) -> dict[str, float]:
    """GiB: the largest resident size of each rank so far, summed over ranks and of the largest rank."""
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    peaks = {"rss_sum_gib": float(world.sum([mine])[0]), "rss_max_gib": world.max(mine)}
    if world.device.type == "cuda":
        peaks["device_max_gib"] = world.max(torch.cuda.max_memory_allocated() / 2**30)
    return peaks
