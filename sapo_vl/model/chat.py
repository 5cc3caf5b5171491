"""Messages and images become token ids, positions and pixels here, and nowhere else.

Two id streams per prompt: `ids`, where every image is expanded to its tokens (the trainer feeds these), and
`compact_ids` with one placeholder per image (vLLM expands it itself). Positions (M-RoPE) are computed once per
prompt by the model's own `get_rope_index` and carried along. A prompt is never cut: a cut inside an image
would leave image tokens without features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from qwen_vl_utils import process_vision_info
from transformers import AutoProcessor, PreTrainedModel

from sapo_vl.model.loading import ModelConfig, ModelError, base_model
from sapo_vl.model.thinking import CLOSE, continued, opened_text
from sapo_vl.types import Problem, Prompt

log = logging.getLogger(__name__)


class PromptError(ValueError):
    """A problem cannot become a prompt: too long, or images and placeholders disagree. Names the problem."""


class PromptTooLong(PromptError):
    """More tokens than model.max_prompt_tokens."""


def load_processor(path: str, revision: str | None = None) -> Any:
    """The folder's own processor; ModelError if it has none."""
    try:
        processor = AutoProcessor.from_pretrained(path, revision=revision)
    except (OSError, ValueError, ImportError, KeyError) as e:
        raise ModelError(
            f"model.path={path!r} has no usable processor ({e}); copy processor_config.json, tokenizer files and the "
            "chat template of the original model into the folder"
        ) from e
    missing = [a for a in ("image_processor", "tokenizer") if getattr(processor, a, None) is None]
    if missing:
        raise ModelError(
            f"model.path={path!r}: its processor lacks {' and '.join(missing)}; copy preprocessor_config.json and the "
            "tokenizer files of the original model into the folder"
        )
    if not getattr(processor, "chat_template", None) and not getattr(processor.tokenizer, "chat_template", None):
        raise ModelError(f"model.path={path!r}: no chat template; add chat_template.jinja of the original model")
    return processor


class Chat:
    """Problem -> Prompt, response text <-> response ids, and the special ids of the model."""

    def __init__(self, processor: Any, model: PreTrainedModel | torch.nn.Module, config: ModelConfig) -> None:
        inner = base_model(model)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.config = config
        self._rope_index: Callable[..., tuple[torch.Tensor, torch.Tensor]] = inner.model.get_rope_index
        vision = inner.config.vision_config
        self.patch_size: int = vision.patch_size
        self.merge_size: int = vision.spatial_merge_size
        if processor.image_processor.patch_size != self.patch_size:
            raise ModelError(
                f"the processor cuts patches of {processor.image_processor.patch_size} pixels, the model wants "
                f"{self.patch_size}; use the processor that belongs to the model"
            )
        hf = inner.config
        self.image_token_id: int = hf.image_token_id
        # A sampled vision token would ask for image features that do not exist.
        self.banned_ids: tuple[int, ...] = tuple(
            sorted({hf.image_token_id, hf.video_token_id, hf.vision_start_token_id, hf.vision_end_token_id})
        )
        self.eos_ids: tuple[int, ...] = _eos_ids(inner, self.tokenizer)
        self.opened: str = opened_text(processor)
        """What the chat template has opened for the response, such as "<think>\\n"; "" for most templates."""
        if self.opened and CLOSE not in self.decode(self.tokenizer(CLOSE, add_special_tokens=False).input_ids):
            raise ModelError(
                f"the chat template opens <think> for the model, but the tokenizer leaves {CLOSE} out of what it "
                f'decodes: every response would look like unfinished thinking; set "special": false for {CLOSE} in '
                "tokenizer_config.json"
            )
        self.pad_id: int = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos_ids[0]

    @classmethod
    def load(cls, model: PreTrainedModel | torch.nn.Module, config: ModelConfig) -> Chat:
        chat = cls(load_processor(config.path, config.revision), model, config)
        if chat.opened:
            log.info(
                "the chat template opens %r for the model: the text of every response begins with it, and a response "
                "without </think> has no answer",
                chat.opened,
            )
        return chat

    def prompt(self, problem: Problem) -> Prompt:
        """Tokenises one problem. Raises PromptError naming the problem and what to change."""
        messages = _with_images(problem, self.config.min_pixels, self.config.max_pixels)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images = process_vision_info(messages, image_patch_size=self.patch_size)[0]
        compact = self.tokenizer(text, add_special_tokens=False).input_ids
        placeholders = compact.count(self.image_token_id)
        if placeholders != len(problem.images):
            raise PromptError(
                f"problem {problem.id!r}: its text makes {placeholders} image placeholders for {len(problem.images)} "
                "images; remove literal vision tokens from the text"
            )
        # Images are resized already, with the bounds of the config.
        inputs = self.processor(
            text=[text], images=images, do_resize=False, return_tensors="pt", add_special_tokens=False
        )
        ids = inputs["input_ids"]
        if ids.shape[1] > self.config.max_prompt_tokens:
            raise PromptTooLong(
                f"problem {problem.id!r}: prompt of {ids.shape[1]} tokens, model.max_prompt_tokens is "
                f"{self.config.max_prompt_tokens}; raise it or lower model.max_pixels"
            )
        grid = inputs.get("image_grid_thw")
        positions, _ = self._rope_index(ids, mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=grid)
        return Prompt(
            problem=problem,
            ids=ids[0].numpy(),
            compact_ids=np.asarray(compact, np.int64),
            positions=positions[:, 0].numpy(),
            pixel_values=inputs.get("pixel_values"),
            image_grid_thw=grid,
            images=tuple(images or ()),
        )

    def response_ids(self, text: str) -> np.ndarray:
        """[R] int64 ids of a worked solution, with the end-of-turn token. For the cold start only.

        Thinking that the chat template has opened is not opened again; see sapo_vl.model.thinking.continued.
        """
        ids = self.tokenizer(continued(text, self.opened), add_special_tokens=False).input_ids
        banned = sorted(set(ids) & set(self.banned_ids))
        if banned:
            raise PromptError(f"a solution contains the vision tokens {banned}: {text[:80]!r}")
        return np.asarray([*ids, self.eos_ids[0]], np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a response, special tokens left out: what the chat template opened, then the ids decoded."""
        return self.opened + self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=True)

    def blank_pixels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest image there is: pixel_values [merge^2, patch_dim] of zeros and its grid [1, 3]."""
        processor = self.processor.image_processor
        dim = 3 * processor.temporal_patch_size * self.patch_size**2
        grid = torch.tensor([[1, self.merge_size, self.merge_size]])
        return torch.zeros(self.merge_size**2, dim), grid


def _eos_ids(inner: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a turn: the tokenizer's first, then those of the generation config."""
    from_config = inner.generation_config.eos_token_id if inner.generation_config is not None else None
    extra = from_config if isinstance(from_config, list) else [from_config]
    found = [i for i in dict.fromkeys([tokenizer.eos_token_id, *extra]) if i is not None]
    if not found:
        raise ModelError("neither the tokenizer nor generation_config.json names an end-of-turn token (eos_token_id)")
    return tuple(found)


def _with_images(problem: Problem, min_pixels: int, max_pixels: int) -> list[dict[str, Any]]:
    """The chat turns with the problem's images put into their image parts.

    Only images that came with the row are used: a path or an address inside a message is refused, since the
    helper library would open or fetch it.
    """
    images = list(problem.images)
    turns: list[dict[str, Any]] = []
    for turn in problem.messages:
        content = turn["content"]
        if isinstance(content, str):
            turns.append({"role": turn["role"], "content": [{"type": "text", "text": content}]})
            continue
        filled: list[dict[str, Any]] = []
        for part in content:
            if part.get("type") == "image" and not set(part) - {"type"}:
                if not images:
                    raise PromptError(f"problem {problem.id!r}: more image parts than images ({len(problem.images)})")
                filled.append(
                    {
                        "type": "image",
                        "image": images.pop(0),
                        "min_pixels": min_pixels,
                        "max_pixels": max_pixels,
                    }
                )
            elif part.get("type") == "text" and isinstance(part.get("text"), str):
                filled.append({"type": "text", "text": part["text"]})
            else:
                raise PromptError(
                    f"problem {problem.id!r}: message part {str(part)[:80]!r}; allowed are "
                    '{"type": "text", "text": ...} and {"type": "image"} (images go into the images column)'
                )
        turns.append({"role": turn["role"], "content": filled})
    if images:
        raise PromptError(f"problem {problem.id!r}: {len(images)} of {len(problem.images)} images are in no message")
    return turns
