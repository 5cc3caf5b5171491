"""Checks of a model folder of the user's: does it load as it is, does a copy of it with few layers train, is what is
written what was trained, does vLLM agree, and what memory does the whole take?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors import safe_open
from torch import Tensor

from sapo_vl.distributed import init_world
from sapo_vl.doctor import case
from sapo_vl.doctor.base import Inapplicable, Subject, Unfit
from sapo_vl.doctor.engine_checks import vllm_agrees
from sapo_vl.learning.engine import UpdateResult
from sapo_vl.learning.final import ExportError, make_probe, save_model
from sapo_vl.learning.objectives import global_denominators, imitation_objective
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.model.batching import pack
from sapo_vl.model.chat import check_tokenizer, load_processor
from sapo_vl.model.export import carried_files
from sapo_vl.model.folder import CONFIG, EXPERT_WEIGHTS, ModelError, ModelFolder, examine, write_weights
from sapo_vl.model.thinking import opened_text
from sapo_vl.rollout import RolloutConfig
from sapo_vl.session import open_session

_LAYER = re.compile(r"language_model\.layers\.(\d+)\.")
FP32, TRAINED_FP32 = 4, 16  # bytes a parameter: held; held with gradient and Adam's two moments
GIB = 2**30
BY_EXPERT = (*EXPERT_WEIGHTS, "mlp.gate.weight")  # weights with a first dimension of experts
SHARE = 0.5  # of the free memory that a trial may take
GPU_GIB = 80
LAYOUTS = {"": "dense", "hub": "experts as on the hub", "runtime": "experts as transformers holds them"}


@dataclass(frozen=True, slots=True)
class Cut:
    """How a copy differs from the folder it was made of."""

    layers: int
    of_layers: int
    experts: int  # 0 for dense models
    of_experts: int

    def text(self) -> str:
        experts = f" and {self.experts} of {self.of_experts} experts" if self.experts else ""
        return f"{self.layers} of {self.of_layers} layers{experts}, all widths as they are"


def loading(subject: Subject) -> str:
    """The weights in the files are those of the config, by name and shape; layout and tie are known."""
    try:
        folder = examine(_given(subject))
        _, repairs = carried_files(folder, "float32")
    except ModelError as error:
        raise Unfit(str(error), "get the folder anew, or see what wrote it") from error
    layout = LAYOUTS[folder.layout]
    types = sorted({weight.dtype for weight in folder.weights.values()})
    parts = [
        f"{len(folder.weights)} weights, {folder.numel / 1e9:.3g}B parameters in {', '.join(types)}",
        layout + (" (sizes that look alike in both layouts)" if folder.alike else ""),
        "head tied to the embedding" if folder.tied else "head of its own",
        *repairs,
    ]
    if folder.layout == "runtime":
        parts.append(f"vLLM cannot load it: `sapo-vl convert {folder.path} --out DIR` writes one it can")
    return "; ".join(parts)


def tokens(subject: Subject) -> str:
    """Tokenizer, processor and chat template are there and belong to the model."""
    folder = _folder(subject)
    try:
        processor = load_processor(str(folder.path))
        check_tokenizer(processor, folder)
    except ModelError as error:
        raise Unfit(
            str(error), "copy the processor, tokenizer and chat template files of the original model"
        ) from error
    spare = folder.shapes["lm_head.weight"][0] - len(processor.tokenizer)
    opened = opened_text(processor)
    thinking = f"the chat template opens {opened!r} for the model" if opened else "the chat template opens no thinking"
    return f"{len(processor.tokenizer)} tokens, {spare} rows of the embedding without one; {thinking}"


def trial(subject: Subject) -> str:
    """Two updates of a copy with few layers; what is written of it is read back."""
    folder = _folder(subject)
    out = subject.scratch / "cut"
    cut = cut_down(folder, out)
    world = init_world()
    session = open_session(
        case.MODEL.model_copy(update={"path": str(out)}),
        OptimConfig(lr=1e-4, warmup_steps=0),
        ZeroConfig(stage=0),
        RolloutConfig(),
        world,
        total_updates=2,
        seed=subject.seed,
    )
    batch = [pack(case.groups(session.chat, subject.seed), session.chat.blank_pixels())]
    objective = imitation_objective("token_mean", global_denominators(batch, world))
    results: list[UpdateResult] = [session.engine.update(batch, batch[0], objective) for _ in range(2)]
    if not all(r.applied and r.grad_norm > 0 for r in results):
        raise Unfit(
            f"updates were dropped or had no gradient: {results}", "the folder's weights are not finite, or all alike"
        )
    try:
        proof = save_model(
            session.engine, session.folder, "float32", subject.scratch / "saved", make_probe(session.chat)
        )
    except ExportError as error:
        raise Unfit(str(error), "report it: what would be written after training is not the model") from error
    first, second = (r.loss for r in results)
    return (
        f"{cut.text()}: loss {first:.3f} -> {second:.3f} in two updates; {proof.weights} weights written and read "
        f"back, log-probs {proof.probe_gap} apart. Not tried: the whole model, another dtype than float32, a GPU"
    )


def vllm_model(subject: Subject) -> str:
    """vLLM and the trainer agree on a copy of the folder with few layers."""
    folder = _folder(subject)
    out = subject.scratch / "cut_for_vllm"
    cut = cut_down(folder, out)
    return f"{cut.text()}: {vllm_agrees(out, subject.seed)}"


def memory(subject: Subject) -> str:
    """What the whole model takes."""
    n = _folder(subject).numel
    trained = n * 16 / GIB
    gpus = max(1, -int(-trained // (0.9 * GPU_GIB)))
    return (
        f"{n * 2 / GIB:.3g} GiB to hold in bfloat16; {trained:.3g} GiB to train with AdamW (16 bytes a parameter, over "
        f"all ranks under ZeRO-3: {gpus} or more GPUs of {GPU_GIB} GB, or offload). Not counted: activations, a "
        "rollout engine"
    )


def _given(subject: Subject) -> str:
    if not subject.model:
        raise Inapplicable("no model folder was given: --model DIR")
    return subject.model


def _folder(subject: Subject) -> ModelFolder:
    try:
        return examine(_given(subject))
    except ModelError:
        raise Inapplicable("the folder does not load: see the check 'loading'") from None


def cut_down(folder: ModelFolder, out: Path) -> Cut:
    """Writes a copy with so few layers, and if need be experts, that training it fits into memory.

    As many layers as the vision tower feeds stay. Raises Inapplicable if even that does not fit.
    """
    text = folder.config.get_text_config()
    layers = min(text.num_hidden_layers, max(2, len(folder.config.vision_config.deepstack_visual_indexes)))
    experts = total = getattr(text, "num_experts", 0) if folder.layout else 0
    room = SHARE * psutil.virtual_memory().available
    while (needed := TRAINED_FP32 * _numel(folder, layers, experts)) > room:
        if experts <= max(text.num_experts_per_tok if experts else 0, 1):
            raise Inapplicable(
                f"even {layers} layers take {needed / GIB:.1f} GiB to train, and {room / GIB:.1f} GiB may be used here"
            )
        experts //= 2
    out.mkdir()
    files, _ = carried_files(folder, "float32")
    raw = json.loads(files[CONFIG])
    raw["text_config"]["num_hidden_layers"] = layers
    if experts:
        raw["text_config"] = {k: v for k, v in raw["text_config"].items() if k != "num_local_experts"}
        raw["text_config"]["num_experts"] = experts
    raw["text_config"].pop("layer_types", None)
    files[CONFIG] = json.dumps(raw, indent=2).encode()
    for name, content in files.items():
        (out / name).write_bytes(content)
    write_weights(_kept(folder, layers, experts), out)
    return Cut(layers, text.num_hidden_layers, experts, total)


def _numel(folder: ModelFolder, layers: int, experts: int) -> int:
    total = 0
    for name, shape in folder.shapes.items():
        if (match := _LAYER.search(name)) and int(match[1]) >= layers:
            continue
        if folder.tied and name == "lm_head.weight":
            continue
        size = 1
        for n in (min(experts, shape[0]), *shape[1:]) if name.endswith(BY_EXPERT) else shape:
            size *= n
        total += size
    return total


def _kept(folder: ModelFolder, layers: int, experts: int) -> Iterator[tuple[str, Tensor]]:
    for file in sorted({w.file for w in folder.weights.values()}):
        with safe_open(folder.path / file, framework="pt") as f:
            for name in sorted(set(f.keys()) & set(folder.weights)):
                if (match := _LAYER.search(name)) and int(match[1]) >= layers:
                    continue
                is_expert = name.endswith(EXPERT_WEIGHTS)
                cut = experts and name.endswith(BY_EXPERT)
                value = f.get_slice(name)[:experts] if cut else f.get_tensor(name)
                if is_expert and folder.layout == "runtime":
                    value = value.transpose(1, 2)
                yield name, value.float()
