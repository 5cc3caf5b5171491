"""The contract of vLLM 0.32: everything of it that is called, and how it behaves.

Another version gets a file of its own beside this one and a row in contract.CONTRACTS, after the tests of
tests/rollout/test_vllm.py and `sapo-vl doctor` passed with it.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sapo_vl.model.loading import ModelConfig
from sapo_vl.rollout.base import SamplingParams
from sapo_vl.rollout.vllm.at_a_time import responses_at_a_time
from sapo_vl.rollout.vllm.config import VllmConfig
from sapo_vl.rollout.vllm.responses import Answer, Sample
from sapo_vl.rollout.vllm.shared import Bytes
from sapo_vl.types import Prompt

# Far below any logit: e^-100 is nothing, and vLLM takes no bias beyond it.
BAN = -100.0
SHARED_MEMORY = Path("/dev/shm")
BLOCK = 32  # pixels to a side of a vision token of Qwen3-VL
THINNEST = 200  # sapo_vl.model.chat refuses pictures whose sides differ by a larger factor
WORKER = "sapo_vl.rollout.vllm.worker.WorkerExtension"
# Ways to take new weights over, from the fastest to the surest. A parity check decides which one is right.
SYNC_METHODS = ("reload", "repack", "fresh")


def sync_methods(on_cpu: bool) -> tuple[str, ...]:
    """Those that are tried here. What the others mend are copies of weights that the CPU build alone keeps; beside GPUs
    a difference is a fault to be told, and `fresh` would write all weights to the disk for every rank at every sync."""
    return SYNC_METHODS if on_cpu else SYNC_METHODS[:1]


def precision_environment(dtype: str) -> dict[str, str]:
    """For processes of vLLM that hold a model of `dtype`. In float32 its attention, and its experts, are Triton kernels
    beside a GPU, and Triton multiplies in TF32 unless it is told otherwise: log-probs would be 1e-3 off."""
    return {"TRITON_F32_DEFAULT": "ieee"} if dtype == "float32" else {}


def set_environment(config: VllmConfig, dtype: str, on_cpu: bool) -> None:
    """vLLM reads these when it is imported. What the user set stays."""
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anybody
        **precision_environment(dtype),
    }
    if on_cpu:
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def open_engine(
    path: Path | str,
    model: ModelConfig,
    config: VllmConfig,
    max_model_len: int,
    on_cpu: bool,
    distributed: bool,
    routes: bool = False,
) -> Any:
    """A vllm.LLM on the weights of `path`; with `routes` it returns the experts of every token."""
    set_environment(config, model.dtype, on_cpu)
    if routes:
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    if on_cpu:
        # Its sampler is compiled at the first call, which takes a C++ compiler and up to a minute for nothing here.
        torch._dynamo.config.disable = True
    from vllm import LLM
    from vllm.v1.engine import core

    # At its end an engine would destroy torch's default process group, which is the trainer's.
    core.cleanup_dist_env_and_memory = _drop_own_groups
    with _own_shared_memory() if on_cpu and distributed else contextlib.nullcontext():
        return LLM(
            **engine_settings(path, model, config, max_model_len, on_cpu=on_cpu, routes=routes),
            distributed_executor_backend="external_launcher" if distributed else None,
            enable_sleep_mode=config.sleep and not on_cpu,
            disable_log_stats=True,
        )


def engine_settings(
    path: Path | str, model: ModelConfig, config: VllmConfig, max_model_len: int, *, on_cpu: bool, routes: bool = False
) -> dict[str, Any]:
    """What every engine is set to, in process or in a server, by the names of `vllm.LLM`."""
    return {
        "model": str(path),
        "revision": model.revision,
        "dtype": model.dtype,
        "tensor_parallel_size": config.tensor_parallel,
        "worker_extension_cls": WORKER,
        "max_model_len": max_model_len,
        "max_num_seqs": responses_at_a_time(path, model, config, max_model_len, on_cpu),
        # A prompt cut in two samples a token too many and rewinds the request's generator, which no CPU one can do.
        "enable_chunked_prefill": not on_cpu,
        "max_num_batched_tokens": max(max_model_len, 8192),
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": config.enforce_eager or on_cpu,
        # Log-probs of the law that is sampled from: after bans, temperature, top-k and top-p.
        "logprobs_mode": "processed_logprobs",
        "limit_mm_per_prompt": {"image": config.max_images_per_prompt, "video": 0},
        "mm_processor_kwargs": {"size": image_bounds(model.min_pixels, model.max_pixels)},
        "seed": 0,  # of what no request names; all requests carry their own
        "trust_remote_code": False,
        # Not run here: vLLM's CPU build has no Model Runner V2. The expert ids are those of the model, whatever the
        # placement of experts on GPUs.
        **({"enable_return_routed_experts": True, "enable_prefix_caching": True} if routes else {}),
    }


def image_bounds(min_pixels: int, max_pixels: int) -> dict[str, int]:
    """Bounds of vLLM's resize, so wide that it leaves alone the images, which arrive resized.

    The first resize rounds sides to whole blocks: down from max_pixels, and so below min_pixels where the two lie close
    together, and up from min_pixels, and so above max_pixels there.
    """
    sides = math.sqrt(min_pixels * THINNEST) + math.sqrt(min_pixels / THINNEST)  # of the thinnest picture
    rounded_up = math.ceil(min_pixels + BLOCK * sides + BLOCK**2)
    return {"shortest_edge": 1, "longest_edge": max(max_pixels, rounded_up)}


def _drop_own_groups(shutdown_ray: bool = False) -> None:
    from vllm.distributed.parallel_state import destroy_model_parallel

    destroy_model_parallel()


@contextlib.contextmanager
def _own_shared_memory() -> Iterator[None]:
    """An engine made inside has shared memory of its own, which is gone with its processes. All ranks call it together.

    vLLM's CPU build names it by the ranks alone where torchrun started them: two runs of a machine would meet in it,
    and what a killed one leaves there would keep every later one from starting.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed as Shared

    drawn = [secrets.token_hex(8)]
    dist.broadcast_object_list(drawn, src=0)
    given, names = Shared.make_group_name, set[str]()

    def named(communicator: Any) -> str:
        name = f"{drawn[0]}{given(communicator).replace('/', '')}"
        names.add(name)
        return name

    Shared.make_group_name = staticmethod(named)
    try:
        yield
    finally:
        Shared.make_group_name = staticmethod(given)
        for name in names:  # every rank of the group has it open by now
            for file in SHARED_MEMORY.glob(f"{glob.escape(name)}_*"):
                file.unlink(missing_ok=True)


def sampling_fields(params: SamplingParams, seed: int, eos: Sequence[int], banned: Sequence[int]) -> dict[str, Any]:
    """vLLM's sampling parameters by name: for its class in process, as JSON for a server.

    `seed` is of the first response; the j-th uses seed + j. Greedy: one response, vLLM refuses to repeat it.
    """
    return {
        "n": params.n if params.temperature > 0 else 1,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,  # 0 = off, as here
        "presence_penalty": params.presence_penalty,
        "seed": seed,
        "max_tokens": params.max_new_tokens,
        "logprobs": 0,  # of the sampled token only
        "stop_token_ids": list(eos),
        "logit_bias": dict.fromkeys(banned, BAN),
        "detokenize": False,
        "skip_special_tokens": False,
    }


def sampling(params: SamplingParams, seed: int, eos: Sequence[int], banned: Sequence[int]) -> Any:
    """The parameters as vLLM's own class."""
    from vllm import SamplingParams as VllmSamplingParams

    return VllmSamplingParams(**sampling_fields(params, seed, eos, banned))


def request(prompt: Prompt) -> Any:
    """Compact ids and images: vLLM expands the placeholders itself."""
    from vllm import TokensPrompt

    tokens = TokensPrompt(prompt_token_ids=prompt.compact_ids.tolist())
    if prompt.images:
        tokens["multi_modal_data"] = {"image": list(prompt.images)}
    return tokens


def generate(
    llm: Any,
    prompts: Sequence[Prompt],
    params: Sequence[Any],
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Ids and log-probs of the responses, with the prompt's ids as vLLM expanded them. `on_answer` is told of each as
    soon as it is finished. What `LLM.generate` does, which tells of none before the last."""
    first = llm.request_counter.counter  # requests are named by it, one after the other
    llm.enqueue([request(p) for p in prompts], list(params), use_tqdm=False)
    return _answers(llm, first, len(prompts), on_answer)


def prepare(llm: Any, prompts: Sequence[Prompt]) -> list[Bytes]:
    """The prompts as the engine takes them, with images processed, for `generate_prepared` of any process."""
    from sapo_vl.rollout.vllm import v0_32_prepared  # loads vLLM

    return v0_32_prepared.prepare(llm, [request(p) for p in prompts])


def generate_prepared(
    llm: Any,
    prepared: Sequence[Sequence[Bytes]],
    params: Sequence[Any],
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """`generate` for the prompts of several calls of `prepare`, one after the other; arrays stay in their buffers."""
    from sapo_vl.rollout.vllm import v0_32_prepared

    first = llm.request_counter.counter
    v0_32_prepared.enqueue(llm, prepared, params)
    return _answers(llm, first, len(params), on_answer)


def _answers(llm: Any, first: int, count: int, on_answer: Callable[[int, Answer], None] | None) -> list[Answer]:
    """Runs the engine until the `count` requests from number `first` on are answered."""
    answers: dict[int, Answer] = {}
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            if output.finished:
                i = int(output.request_id) - first
                answers[i] = _answer(output)
                if on_answer is not None:
                    on_answer(i, answers[i])
    # Beside a GPU the next batch is scheduled before the last response is known to be over. What it still has to hand
    # out (routes) would be met by the next call, in an engine that has slept.
    core = llm.llm_engine.engine_core.engine_core
    while core.batch_queue:
        llm.llm_engine.step()
    return [answers[i] for i in range(count)]


def _answer(output: Any) -> Answer:
    samples = []
    for c in output.outputs:
        ids = np.asarray(c.token_ids, np.int64)
        logprobs = [step[i].logprob for step, i in zip(c.logprobs, c.token_ids, strict=True)]
        samples.append(
            Sample(
                ids=ids,
                logprobs=np.asarray(logprobs, np.float32),
                finish=str(c.finish_reason),
                routes=c.routed_experts,  # [P + R - 1, all decoder layers, k], dense layers 0; None if not enabled
            )
        )
    return Answer(prompt_ids=np.asarray(output.prompt_token_ids, np.int64), samples=tuple(samples))


def reload(llm: Any, weights: Iterator[tuple[str, Tensor]], repack: bool) -> None:
    """Takes new weights over in place; with `repack`, also the packed copies of the CPU build."""
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    if repack:
        llm.collective_rpc("sapo_repack_cpu")


def reset_caches(llm: Any) -> None:
    """What was computed under the old weights: KV of prefixes, processed images, outputs of the vision tower."""
    llm.reset_prefix_cache()
    llm.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()


def wake(llm: Any) -> None:
    """Takes the memory back that `sleep` gave; nothing if the engine is awake."""
    if _may_sleep(llm) and llm.llm_engine.is_sleeping():
        # torch keeps what the trainer's activations took, and vLLM's memory does not come from torch.
        torch.cuda.empty_cache()
        llm.wake_up()


def sleep(llm: Any) -> None:
    """Weights go to main memory, the KV cache away; nothing if the engine is asleep."""
    if _may_sleep(llm) and not llm.llm_engine.is_sleeping():
        llm.sleep(level=1)


def _may_sleep(llm: Any) -> bool:
    return llm.llm_engine.vllm_config.model_config.enable_sleep_mode
