"""The contract of vLLM 0.32's server: every route that is used, what it takes and what it gives.

Tokens go in and tokens come out (`/inference/v1/generate`, which needs `--enable-scale-out`): ids with one
placeholder per image and the images beside them; back come the ids as the engine expanded them, the sampled ids, their
log-probs and the label of the weights that sampled them. Weights, caches and labels are reached through routes of
vLLM's development mode (`VLLM_SERVER_DEV_MODE=1`).
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from tokenize import TokenError
from typing import Annotated, Any

import httpx
import numpy as np
from numpy.lib import format as npy
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from sapo_vl.rollout.vllm.client import BadAnswer, NoAnswer, Refusal, ServerFault, Unreachable, ask
from sapo_vl.rollout.vllm.package import Package
from sapo_vl.rollout.vllm.responses import Answer, Sample
from sapo_vl.types import Prompt

VERSION = "0.32"
GENERATE = "/inference/v1/generate"
BASE_S = 120.0  # for a look into every tensor of a model folder
PROBE_S = 10.0  # for what takes no time in a server that is alive
NO_LOGPROB = -9999.0  # vLLM writes this for a log-prob that is missing, -inf or NaN

Id = Annotated[int, Field(ge=0, lt=2**31)]


class _Logprob(BaseModel):
    token_id: Id
    logprob: float


class _Logprobs(BaseModel):
    content: list[_Logprob] | None = None


class _Span(BaseModel):
    version: str


class _Choice(BaseModel):
    index: int
    finish_reason: str | None = None
    token_ids: list[Id] | None = None
    logprobs: _Logprobs | None = None
    weight_versions: list[_Span] | None = None
    routed_experts: str | None = None  # a .npy file in base64


class _Response(BaseModel):
    request_id: str
    prompt_token_ids: list[Id] | None = None
    choices: list[_Choice]


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer, and the labels of the weights that it was sampled from ("" for a response that names none)."""

    answer: Answer
    labels: frozenset[str]


def request(prompt: Prompt, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The body that asks for one prompt, but for its `request_id`. Images are sent as PNG, which keeps every pixel."""
    body: dict[str, Any] = {
        "token_ids": prompt.compact_ids.tolist(),
        "sampling_params": {**sampling, "logit_bias": {str(k): v for k, v in sampling["logit_bias"].items()}},
        "return_token_ids": True,
    }
    if prompt.images:
        body["content_parts"] = [{"type": "image_url", "url": _png(image)} for image in prompt.images]
    return body


def read_answer(body: bytes, name: str) -> Labelled:
    """Raises BadAnswer for what is not an answer to the request called `name`."""
    try:
        response = _Response.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadAnswer(f"the answer cannot be read ({where + ': ' if where else ''}{first['msg']})") from error
    if not response.request_id.endswith(name):
        raise BadAnswer(f"the answer is for request {response.request_id[:80]!r}, asked was {name!r}")
    choices = sorted(response.choices, key=lambda c: c.index)
    if [c.index for c in choices] != list(range(len(choices))):
        raise BadAnswer(f"the answer numbers its samples {[c.index for c in choices][:8]}")
    answer = Answer(
        prompt_ids=np.asarray(response.prompt_token_ids or [], np.int64), samples=tuple(map(_sample, choices))
    )
    labels = {span.version for c in choices for span in c.weight_versions or [_Span(version="")]}
    return Labelled(answer=answer, labels=frozenset(labels))


def _sample(choice: _Choice) -> Sample:
    ids = choice.token_ids or []
    content = (choice.logprobs.content if choice.logprobs else None) or []
    if content and [entry.token_id for entry in content] != ids:
        raise BadAnswer("the log-probs in the answer are of other tokens")
    logprobs = [entry.logprob if entry.logprob > NO_LOGPROB else -np.inf for entry in content]
    return Sample(
        ids=np.asarray(ids, np.int64),
        logprobs=np.asarray(logprobs, np.float32),
        finish=choice.finish_reason or "nothing",
        routes=None if choice.routed_experts is None else _array(choice.routed_experts),
    )


def _array(text: str) -> np.ndarray:
    """Whole numbers from a .npy file in base64, if it is as long as it says: numpy would reserve what it says."""
    try:
        raw = base64.b64decode(text, validate=True)
        file = io.BytesIO(raw)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, fortran, dtype = read_header(file)
    except (ValueError, KeyError, SyntaxError, TokenError, RecursionError, MemoryError) as error:  # of its header
        raise BadAnswer(f"its routed_experts are no array ({str(error)[:200]})") from error
    body = raw[file.tell() :]
    if dtype.kind not in "iu" or min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(body):
        raise BadAnswer(f"its routed_experts are {dtype} of shape {shape} in {len(body)} bytes")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def _png(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)  # quick; the wire is not what rollouts wait for
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a server must be set to."""

    dtype: str
    max_model_len: int  # tokens of prompt and response
    min_pixels: int
    max_pixels: int
    routes: bool = False  # the experts of every token come with the answers
    transfer: str = "disk"  # as rollout.server.transfer
    base: str = ""  # which model it was started from, see Package; "" = any of the same shapes


class _Rpc(BaseModel):
    results: list[Any]


class _Settings(BaseModel):
    dtype: str
    logprobs_mode: str
    max_model_len: int
    vocab_size: int
    image_size: dict[str, int]
    routes: bool = False
    transfer: str = ""


async def is_up(http: httpx.AsyncClient, url: str) -> str:
    """ "" if the server is ready, else why it is not yet. Raises Refusal for what is no vLLM server."""
    try:
        await ask(http, url, "GET", "/health", within=PROBE_S)
    except Refusal as refusal:
        if refusal.status != 503:  # that one: its engine is not alive, or not yet
            raise
        return str(refusal)
    except (Unreachable, NoAnswer, BadAnswer) as fault:
        return str(fault)
    return ""


async def check_settings(http: httpx.AsyncClient, url: str, wanted: Wanted) -> int:
    """The size of the server's vocabulary. Raises ServerFault naming the setting that is wrong."""
    version = _json(await ask(http, url, "GET", "/version", within=PROBE_S)).get("version", "")
    if not str(version).startswith(VERSION + "."):
        raise ServerFault(f"it runs vLLM {version}; known here: {VERSION}.x")
    try:
        (found, *_) = await rpc(http, url, "sapo_settings", within=PROBE_S)
    except Refusal as refusal:
        if refusal.status == 404:
            raise ServerFault("its development mode is off (VLLM_SERVER_DEV_MODE=1), so it takes no weights") from None
        raise ServerFault(f"it was started without our --worker-extension-cls ({refusal})") from None
    try:
        settings = _Settings.model_validate(found)
    except ValidationError as error:
        raise BadAnswer(f"it describes itself as {str(found)[:200]}") from error
    try:
        await ask(http, url, "POST", GENERATE, within=PROBE_S, json={})
    except Refusal as refusal:
        if refusal.status == 404:
            raise ServerFault(f"it has no {GENERATE} (--enable-scale-out)") from None
    faults = [text for wrong, text in _differences(settings, wanted) if wrong]
    if wanted.base and wanted.base not in await rpc(http, url, "sapo_base", within=BASE_S):
        faults.append(
            "it was started from another model than the run trains, to which rollout.server.adapters_only adds the "
            "run's adapters; start it with the run's model.path"
        )
    if faults:
        raise ServerFault("; ".join(faults))
    return settings.vocab_size


def _differences(found: _Settings, wanted: Wanted) -> list[tuple[bool, str]]:
    smallest, largest = found.image_size.get("shortest_edge"), found.image_size.get("longest_edge")
    return [
        (found.dtype != wanted.dtype, f"it computes in {found.dtype}, model.dtype is {wanted.dtype}"),
        (
            found.logprobs_mode != "processed_logprobs",
            f"its --logprobs-mode is {found.logprobs_mode}, which is not the law it samples from; use "
            "processed_logprobs",
        ),
        (
            found.max_model_len < wanted.max_model_len,
            f"its --max-model-len is {found.max_model_len}, model.max_prompt_tokens and rollout.max_new_tokens make "
            f"{wanted.max_model_len}",
        ),
        (
            smallest is not None and smallest > wanted.min_pixels,
            f"it enlarges images to {smallest} pixels, model.min_pixels is {wanted.min_pixels}",
        ),
        (
            largest is not None and largest < wanted.max_pixels,
            f"it shrinks images to {largest} pixels, model.max_pixels is {wanted.max_pixels}",
        ),
        (
            wanted.routes and not found.routes,
            "it was started without --enable-return-routed-experts, which replay=r3 needs (`sapo-vl serve` with the "
            "same config sets it)",
        ),
        (
            wanted.transfer != "disk" and found.transfer != wanted.transfer,
            f"its --weight-transfer-config is of {found.transfer or 'nothing'}, rollout.server.transfer is "
            f"{wanted.transfer} (`sapo-vl serve` with the same config sets it)",
        ),
    ]


async def hand_over(http: httpx.AsyncClient, url: str, package: Package, *, repack: bool, timeout_s: float) -> None:
    """The server takes over the weights of `package`, which it reads, and answers under its label from now on.

    Raises ServerFault.
    """
    await _pause(http, url)
    kwargs = {"folder": str(package.folder), "tensors": str(package.tensors)}
    method = "sapo_load_weights"
    if package.base:
        method, kwargs = "sapo_load_adapters", kwargs | {"base": package.base}
    said = await rpc(http, url, method, within=timeout_s, kwargs=kwargs)
    if faults := [text for text in said if text]:
        raise ServerFault(str(faults[0])[:500])
    if repack:
        await rpc(http, url, "sapo_repack_cpu", within=timeout_s)
    await settle(http, url, package)


async def begin_update(http: httpx.AsyncClient, url: str, name: str, group: str) -> bool:
    """The server stops, to be sent the weights called `name`; whether it is the process that joined `group`."""
    await _pause(http, url)
    said = await rpc(http, url, "sapo_expect", within=PROBE_S, kwargs={"folder": name, "group": group})
    return bool(group) and not any(said)


async def joined(http: httpx.AsyncClient, url: str, group: str) -> None:
    """The server's workers note the group that they have joined, for begin_update."""
    await rpc(http, url, "sapo_joined", within=PROBE_S, kwargs={"group": group})


async def worker_count(http: httpx.AsyncClient, url: str) -> int:
    said = _json(await ask(http, url, "GET", "/get_world_size", within=PROBE_S)).get("world_size")
    if not isinstance(said, int) or said < 1:
        raise BadAnswer(f"it says that it has {said!r} workers")
    return said


async def _pause(http: httpx.AsyncClient, url: str) -> None:
    await ask(http, url, "POST", "/pause", within=PROBE_S, params={"mode": "abort"})


async def settle(http: httpx.AsyncClient, url: str, package: Package) -> None:
    """A paused server that has taken the weights of `package` drops what is old, gets the label and goes on.

    The label is set last: one that failed on the way still answers under its old label, which nobody accepts, and
    stays paused. Then the weights are asked for again: what took them and what took the label may be two processes, one
    of which was started in between or stands behind the same address. One that is started later has neither.
    """
    label = package.label
    # What was computed under the old weights: KV of prefixes, processed images, outputs of the vision tower.
    if not _json(await ask(http, url, "POST", "/reset_prefix_cache", within=PROBE_S)).get("success"):
        raise ServerFault("its prefix cache could not be reset: something holds blocks of it")
    await ask(http, url, "POST", "/reset_mm_cache", within=PROBE_S)
    await ask(http, url, "POST", "/reset_encoder_cache", within=PROBE_S)
    await ask(http, url, "POST", "/update_weight_version", within=PROBE_S, json={"new_version": label})
    await ask(http, url, "POST", "/resume", within=PROBE_S)
    seen = _json(await ask(http, url, "GET", "/weight_info", within=PROBE_S)).get("weight_version")
    if seen != label:
        raise ServerFault(f"it says that it has weights {seen!r}, given were {label!r}")
    said = await rpc(http, url, "sapo_has", within=PROBE_S, kwargs={"folder": str(package.folder)})
    if faults := [text for text in said if text]:
        raise ServerFault(f"{str(faults[0])[:400]}, given were those of {label!r}")


async def rpc(
    http: httpx.AsyncClient, url: str, method: str, *, within: float, kwargs: dict[str, str] | None = None
) -> list[Any]:
    """Calls a method of all workers; what each returned. vLLM passes only text in."""
    body = await ask(
        http, url, "POST", "/collective_rpc", within=within, json={"method": method, "kwargs": kwargs or {}}
    )
    try:
        return _Rpc.model_validate_json(body).results
    except ValidationError as error:
        raise BadAnswer(f"{method} gave {body[:100]!r}") from error


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"it said {body[:100]!r}") from error
    if not isinstance(found, dict):
        raise BadAnswer(f"it said {body[:100]!r}")
    return found
