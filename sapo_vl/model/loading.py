"""Loading a Qwen3-VL or Qwen3-VL-MoE folder, freezing parts of it."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from accelerate import init_empty_weights
from pydantic import Field, field_validator
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_config
from transformers.modeling_utils import set_zero3_state

from sapo_vl.model.folder import GENERATION, ModelError, ModelFolder, examine, is_moe
from sapo_vl.model.lora import LoraConfig, add_lora
from sapo_vl.model.norms import replace_norms
from sapo_vl.model.patches import embed_patches_by_product
from sapo_vl.model.prefix_attention import SHARED_PREFIX_ATTENTION, register_attention
from sapo_vl.model.reading import assign_mapped, read_weights
from sapo_vl.strict import Strict

# By name: a config is read without the code of the models.
CLASSES = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration"}
# One MoE layer picks its experts by data, so ZeRO-3 must gather it as a whole on every rank.
ZERO3_LEAF_MODULES = ("Qwen3VLMoeTextSparseMoeBlock",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_CPU = torch.device("cpu")

Part = Literal["vision", "merger", "language", "router", "embeddings", "lm_head"]


class ModelConfig(Strict):
    """Which model, in which precision, and which of its parts learn."""

    path: str = ""  # a Hugging Face folder (or hub id, where a hub can be reached); ~ is the home folder
    revision: str | None = None  # pin of a hub id
    tiny: Literal["", "dense", "moe"] = ""  # build this tiny model from config instead; `path` must be empty
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights in use; masters are float32 either way
    freeze: tuple[Part, ...] = ()  # parts that do not learn; with `lora` nothing but adapters does anyway
    lora: LoraConfig | None = None  # None = all parameters that are not frozen learn
    gradient_checkpointing: bool = False  # recompute layers in the backward pass: less memory, about 1/3 more time
    experts_implementation: Literal["grouped_mm", "eager"] = "grouped_mm"  # of MoE layers; eager: a loop over experts
    min_pixels: int = Field(default=4 * 32 * 32, ge=1)  # images are scaled up to at least this many pixels
    max_pixels: int = Field(default=1024 * 32 * 32, ge=1)  # and down to at most this many
    max_prompt_tokens: int = Field(default=4096, ge=1)
    """A longer prompt is counted and skipped, never cut. Where it is not set and the model has fewer positions than it
    and the longest response need, it is lowered to what that leaves (config.yaml has the value)."""

    @field_validator("path")
    @classmethod
    def _home(cls, path: str) -> str:
        """A shell expands ~ only where it stands bare: not in quotes, and not in YAML."""
        return str(Path(path).expanduser()) if path.startswith("~") else path


def load_model(config: ModelConfig, folder: ModelFolder | None = None, device: torch.device = _CPU) -> PreTrainedModel:
    """The model of `folder` on `device`, ready to be trained: attention set, parts frozen, adapters added.

    `folder` defaults to what `config.path` names, examined first. Returns the transformers model, or a peft model
    around it. Inside a `HfDeepSpeedConfig` of ZeRO stage 3 every rank reads its own pieces of the weights; else all of
    them read them whole. In the memory of the host that is what stays there and one slice of a file. Raises ModelError
    if the files are not those that were examined.
    """
    if folder is None:
        folder = examine(config.path, config.revision)
    register_attention()
    extra: dict[str, Any] = {"experts_implementation": config.experts_implementation} if is_moe(folder.config) else {}
    try:
        model = _without_values(folder, dtype=DTYPES[config.dtype], **extra)
        read_weights(model, folder, device)
    except (OSError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{folder.path} cannot be loaded: {e}") from e
    if (base_model(model).lm_head.weight is base_model(model).model.language_model.embed_tokens.weight) != folder.tied:
        raise ModelError(f"{folder.path}: head and embedding are {'not ' * folder.tied}one weight after loading")
    return prepare_model(model.eval(), config)


def _without_values(folder: ModelFolder, **settings: Any) -> Any:
    """The model of `folder`, tied as its files are, with room for its weights; under ZeRO-3 for this rank's pieces."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_init_weights())
        if is_deepspeed_zero3_enabled():
            import deepspeed  # takes seconds, for what needs it alone
            from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride

            # As if by its user: transformers' own way would draw random weights, a gather a module.
            stack.enter_context(set_zero3_state())
            # By default it makes every new tensor one of the config's dtype, among them the frequencies of the rotary
            # embedding: in bfloat16 they are up to 0.6% off, some radians after a thousand tokens.
            made = [DeepSpeedTensorOverride.device]
            stack.enter_context(deepspeed.zero.Init(config_dict_or_path=deepspeed_config(), tensor_overrides=made))
        config = copy.deepcopy(folder.config)
        model = getattr(transformers, CLASSES[config.model_type])._from_config(config, **settings)
    model.tie_weights()
    return _with_generation(model, folder)


def map_model(config: ModelConfig, folder: ModelFolder) -> PreTrainedModel:
    """As `load_model` on the CPU, for a pass or two: the weights are the files themselves, mapped into memory, so that
    a model larger than it can be run, as fast as the disk is read; experts that lie as on the hub are copied a layer at
    a time. The files must have the dtype of `config`, and must
    stay as they are while the model lives. Raises ModelError."""
    register_attention()
    with init_empty_weights(include_buffers=False):
        model = getattr(transformers, CLASSES[folder.config.model_type])._from_config(
            copy.deepcopy(folder.config), dtype=DTYPES[config.dtype]
        )
    try:
        assign_mapped(model, folder, DTYPES[config.dtype])
    except (OSError, RuntimeError, SafetensorError) as e:
        raise ModelError(f"{folder.path} cannot be mapped: {e}") from e
    model.tie_weights()
    return prepare_model(_with_generation(model, folder).eval(), config)


def load_without_weights(folder: ModelFolder) -> Any:
    """The model of `folder` for its config, generation settings and position index; its weights are nowhere."""
    with torch.device("meta"):
        model = getattr(transformers, CLASSES[folder.config.model_type])._from_config(copy.deepcopy(folder.config))
    return _with_generation(model, folder)


def _with_generation(model: Any, folder: ModelFolder) -> Any:
    model.name_or_path = model.config.name_or_path = str(folder.path)
    if (folder.path / GENERATION).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder.path)
    return model


def prepare_model(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """Attention, checkpointing, frozen parts and adapters, on a model that is already built."""
    register_attention()
    # Only the text model: the vision tower has its own attention over patches.
    model.set_attn_implementation({"text_config": SHARED_PREFIX_ATTENTION})
    embed_patches_by_product(base_model(model).model.visual)
    replace_norms(base_model(model).model.language_model)
    freeze(model, config.freeze)
    if config.lora is not None:
        model = add_lora(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.lora is not None:
            model.enable_input_require_grads()
    model.config.use_cache = False
    return model


def base_model(model: nn.Module) -> Any:
    """The Qwen3VL(Moe)ForConditionalGeneration inside, whether peft wraps it or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part that `freeze` knows."""
    inner = base_model(model)
    visual, language = inner.model.visual, inner.model.language_model
    mergers = [*visual.merger.parameters(), *visual.deepstack_merger_list.parameters()]
    merger_ids = {id(p) for p in mergers}
    routers = [p for name, p in language.named_parameters() if name.endswith("mlp.gate.weight")]
    return {
        "vision": [p for p in visual.parameters() if id(p) not in merger_ids],
        "merger": mergers,
        "language": list(language.parameters()),
        "router": routers,
        "embeddings": list(language.embed_tokens.parameters()),
        "lm_head": list(inner.lm_head.parameters()),
    }


def freeze(model: nn.Module, names: tuple[Part, ...]) -> None:
    """Turns off the gradient of the named parts. Raises ModelError for a part this model lacks."""
    available = parts(model)
    for name in names:
        if not available[name]:
            raise ModelError(f"model.freeze names {name!r}, but this model has no such parameters; remove it")
        for p in available[name]:
            p.requires_grad_(False)
