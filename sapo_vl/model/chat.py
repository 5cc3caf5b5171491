"""Messages and images become token ids, positions and pixels here, and nowhere else.

Two id streams per prompt: `ids`, where every image is expanded to its tokens (the trainer feeds these), and
`compact_ids` with one placeholder per image (vLLM expands it itself). Positions (M-RoPE) are computed once per
prompt by the model's own `get_rope_index` and carried along. A prompt is never cut: a cut inside an image
would leave image tokens without features.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from qwen_vl_utils import process_vision_info
from qwen_vl_utils.vision_process import MAX_RATIO
from transformers import AutoProcessor, PreTrainedModel

from sapo_vl.model.folder import EMBEDDING, ModelError, ModelFolder
from sapo_vl.model.hf_config import eos_ids
from sapo_vl.model.loading import ModelConfig, base_model
from sapo_vl.model.prompt_errors import (
    CallsNotWritten,
    NoSolution,
    PromptError,
    PromptTooLong,
    RefusedByLibrary,
    SolutionTooLong,
    SpecialToken,
    TooManyImages,
)
from sapo_vl.model.thinking import continued, opened_text
from sapo_vl.model.turns import with_images
from sapo_vl.types import Problem, Prompt

log = logging.getLogger(__name__)


# Whatever these calls raise for one row is that row's fault as far as a run can tell; a processor that raises for every
# row ends it all the same, by the share of bad rows. Only calls of libraries stand inside of `_library`.
_LIBRARY_ERRORS = (
    TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError, OSError,
    StopIteration, TemplateError,
)  # fmt: skip
# Added tokens that are part of an answer's form: recipes write them into their instructions.
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_MARKER = re.compile(r"<\|[^|<>\s]+\|>")  # how most tokenizers write a token with a meaning of its own
# Older processors of the family put this word in the place of a picture, and then every such word into image tokens.
_PLACEHOLDER = "<|placeholder|>"


@contextmanager
def _library(problem: Problem, what: str) -> Iterator[None]:
    """Turns what a library raises into a PromptError that names the problem."""
    try:
        yield
    except _LIBRARY_ERRORS as error:
        raise RefusedByLibrary(f"problem {problem.id!r}: {what}: {type(error).__name__}: {str(error)[:300]}") from error


def load_processor(path: str, revision: str | None = None) -> Any:
    """The folder's own processor; ModelError if it has none."""
    try:
        processor = AutoProcessor.from_pretrained(path, revision=revision)
    except (*_LIBRARY_ERRORS, ImportError) as e:
        why = " ".join(str(e).split())[:300] or type(e).__name__
        raise ModelError(
            f"model.path={path!r} has no usable processor ({why}); copy processor_config.json, tokenizer files and the "
            "chat template of the original model into the folder"
        ) from e
    missing = [a for a in ("image_processor", "tokenizer") if getattr(processor, a, None) is None]
    if missing:
        raise ModelError(
            f"model.path={path!r}: its processor lacks {' and '.join(missing)}; copy preprocessor_config.json and the "
            "tokenizer files of the original model into the folder"
        )
    if not getattr(processor, "chat_template", None):
        # Where transformers 4 wrote it; the processor looks for a file of its own.
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None)
    if not processor.chat_template:
        raise ModelError(f"model.path={path!r}: no chat template; add chat_template.jinja of the original model")
    return processor


def check_tokenizer(processor: Any, folder: ModelFolder) -> None:
    """ModelError unless the tokenizer is the model's: its vision tokens have the ids of the config, as one token each.

    Where tokenizer files are missing, transformers makes do with an empty vocabulary and says nothing.
    """
    tokenizer, config = processor.tokenizer, folder.config
    rows = folder.shapes[EMBEDDING][0]
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        wanted = getattr(config, name)
        word = tokenizer.convert_ids_to_tokens(wanted) if wanted < len(tokenizer) else None
        found = tokenizer(word, add_special_tokens=False).input_ids if word else []
        if found != [wanted]:
            raise ModelError(
                f"{folder.path}: the tokenizer has no token for {name}={wanted} of config.json ({word!r} becomes "
                f"{found}); its files are missing or of another model: copy tokenizer.json and tokenizer_config.json"
            )
    image_token = getattr(processor, "image_token", None)
    if image_token != tokenizer.convert_ids_to_tokens(config.image_token_id):
        raise ModelError(
            f"{folder.path}: the processor writes {image_token!r} for a picture, which is not the tokenizer's token of "
            f"image_token_id={config.image_token_id}; use the files of one model"
        )
    _check_template(processor, folder)
    if len(tokenizer) > rows:
        raise ModelError(
            f"{folder.path}: the tokenizer has {len(tokenizer)} tokens and the embedding {rows} rows; use the files of "
            "one model"
        )


def _check_template(processor: Any, folder: ModelFolder) -> None:
    """ModelError if the chat template cannot write a simple question; a warning if it writes no pictures."""
    text = {"type": "text", "text": "What is this?"}
    written = {}
    for name, content in (("a text", [text]), ("a picture", [{"type": "image"}, text])):
        turn = [{"role": "user", "content": content}]
        try:
            written[name] = processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        except _LIBRARY_ERRORS as error:
            raise ModelError(
                f"{folder.path}: its chat template cannot write a turn with {name} ({type(error).__name__}: {error}); "
                "copy the chat template of the original model"
            ) from error
    if written["a picture"].count(processor.image_token) != 1:
        log.warning(
            "%s: its chat template writes no %s for a picture; problems with pictures will be bad rows",
            folder.path,
            processor.image_token,
        )


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
        self._special = _special_tokens(processor)
        self._unread = _unread_ids(self.tokenizer)
        self.opened: str = opened_text(processor)
        """What the chat template has opened for the response, such as "<think>\\n"; "" for most templates."""
        self.max_images = 0
        """Pictures of a prompt that the rollout engine takes; 0 = any number."""
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

    def twin(self) -> Chat:
        """For another thread: tokenizers and processors are not made to be used by two at a time."""
        other = copy.copy(self)
        other.processor = copy.deepcopy(self.processor)
        other.tokenizer = other.processor.tokenizer
        return other

    def prompt(self, problem: Problem) -> Prompt:
        """Tokenises one problem. Raises PromptError naming the problem and what to change; nothing else for any row."""
        if 0 < self.max_images < len(problem.images):
            raise TooManyImages(
                f"problem {problem.id!r}: {len(problem.images)} images, rollout.vllm.max_images_per_prompt is "
                f"{self.max_images}; raise it, or leave the row out"
            )
        messages = with_images(problem, self.config.min_pixels, self.config.max_pixels)
        self._check_texts(problem, messages)
        text = self._text(problem, messages)
        with _library(problem, "its images cannot be resized"):
            images = process_vision_info(messages, image_patch_size=self.patch_size)[0]
        for image in images or ():
            if max(image.size) > MAX_RATIO * min(image.size):  # once it is rounded to whole blocks; vLLM would raise
                raise RefusedByLibrary(
                    f"problem {problem.id!r}: an image is {image.width} x {image.height} pixels once it is resized; "
                    f"its sides may differ by a factor of {MAX_RATIO} at most; leave the row out, or cut the image"
                )
        with _library(problem, "the tokenizer cannot read it"):
            compact = self.tokenizer(text, add_special_tokens=False).input_ids
        placeholders = compact.count(self.image_token_id)
        if placeholders != len(problem.images):
            raise PromptError(
                f"problem {problem.id!r}: its text makes {placeholders} image placeholders for {len(problem.images)} "
                "images; remove literal vision tokens from the text"
            )
        with _library(problem, "the processor cannot take it"):
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
        with _library(problem, "it has no positions"):
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

    def pixels(self, images: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """(pixel_values, image_grid_thw) of the resized images of a prompt, as `prompt` makes them."""
        made = self.processor.image_processor(images=list(images), do_resize=False, return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    def check_solution(self, problem: Problem) -> None:
        """Raises PromptError if the problem has no solution that can be imitated."""
        if not problem.solution:
            raise NoSolution(
                f"problem {problem.id!r} has no solution to imitate; build the split with solutions, or leave its task "
                "out by cold_start.quotas"
            )
        if token := self.special_token(problem.solution):
            raise SpecialToken(f"problem {problem.id!r}: its solution contains the special token {token}; take it out")
        with _library(problem, "the tokenizer cannot read its solution"):
            self.tokenizer(problem.solution, add_special_tokens=False)

    def check_row(self, prompt: Prompt, most: int) -> None:
        """Raises SolutionTooLong if a prompt and its solution, which `check_solution` has seen, are of more tokens."""
        size = len(self.response_ids(prompt.problem.solution))
        if len(prompt.ids) + size > most:
            raise SolutionTooLong(
                f"problem {prompt.problem.id!r}: a solution of {size} tokens and a prompt of {len(prompt.ids)} are "
                f"more than batch.tokens_per_micro_batch={most}, for which memory is set up; raise it or leave it out"
            )

    def special_token(self, text: str) -> str:
        """The first special token of the tokenizer that `text` spells out, or ""."""
        found = self._special.search(text)
        return found[0] if found else ""

    def _text(self, problem: Problem, messages: Sequence[Mapping[str, Any]]) -> str:
        """What the chat template writes. Raises CallsNotWritten if the tool_calls of a turn are not in it."""
        unwritten: list[int] = []
        with _library(problem, "the chat template cannot write it"):
            write = functools.partial(self.processor.apply_chat_template, tokenize=False, add_generation_prompt=True)
            text = write(messages)
            for index, turn in enumerate(messages):
                if turn.get("tool_calls"):
                    without = {key: value for key, value in turn.items() if key != "tool_calls"}
                    if write([*messages[:index], without, *messages[index + 1 :]]) == text:
                        unwritten.append(index)
        if unwritten:
            raise CallsNotWritten(
                f"problem {problem.id!r}: the chat template does not write the tool_calls of turn {unwritten[0]}; "
                "write them into its content, or leave the row out"
            )
        return text

    def _check_texts(self, problem: Problem, messages: Sequence[Mapping[str, Any]]) -> None:
        """Raises SpecialToken if a turn spells one out; parts between two images are one text to the tokenizer."""
        for turn in messages:
            said = "".join(part.get("text", "\0") for part in turn["content"])
            with _library(problem, "a turn is no JSON"):
                further = json.dumps({**turn, "content": ""}, ensure_ascii=False)  # the role, and the words of calls
            if token := self.special_token(said) or self.special_token(further):
                raise SpecialToken(
                    f"problem {problem.id!r}: a turn of the {turn['role']!r} contains the special token {token}, which "
                    "the model would not read as text; take it out or leave the row out"
                )

    def response_ids(self, text: str) -> np.ndarray:
        """[R] int64 ids of a worked solution, with the end-of-turn token. For the cold start only.

        Thinking that the chat template has opened is not opened again; see sapo_vl.model.thinking.continued.
        """
        if token := self.special_token(text):
            raise SpecialToken(f"a solution contains the special token {token}: {text[:80]!r}")
        ids = self.tokenizer(continued(text, self.opened), add_special_tokens=False).input_ids
        return np.asarray([*ids, self.eos_ids[0]], np.int64)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a response, special tokens left out: what the chat template opened, then the ids decoded.

        Tags of thinking and answer are read whether or not the tokenizer takes them for special tokens.
        """
        read = [i for i in np.asarray(ids, np.int64).tolist() if i not in self._unread]
        return self.opened + self.tokenizer.decode(read, skip_special_tokens=False)

    def blank_pixels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest image there is: pixel_values [merge^2, patch_dim] of zeros and its grid [1, 3]."""
        processor = self.processor.image_processor
        dim = 3 * processor.temporal_patch_size * self.patch_size**2
        grid = torch.tensor([[1, self.merge_size, self.merge_size]])
        return torch.zeros(self.merge_size**2, dim), grid


def _special_tokens(processor: Any) -> re.Pattern[str]:
    """Finds what the tokenizer or the processor takes for more than text, wherever it stands.

    That is every added token which is special or written as <|name|>, but for the tags of thinking and answer.
    """
    tokenizer = processor.tokenizer
    added = [(token.content, token.special) for token in tokenizer.added_tokens_decoder.values()]
    names = {name for name, special in added if special or _MARKER.fullmatch(name)}
    names |= {_PLACEHOLDER, *map(str, tokenizer.all_special_tokens)}
    names |= {name for key in ("image_token", "video_token") if (name := getattr(processor, key, None))}
    # The longest first, so that an error names the whole token.
    ordered = sorted((name for name in names - set(_TAGS) if name.strip()), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, ordered)))


def _unread_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the special tokens that are no text of a response."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(i for i, token in added if token.special and token.content not in _TAGS)


def _eos_ids(inner: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a turn: the tokenizer's first, then those that the model's configs name."""
    named = eos_ids(inner.config, inner.generation_config)
    found = [i for i in dict.fromkeys([tokenizer.eos_token_id, *named]) if i is not None]
    if not found:
        raise ModelError("neither the tokenizer nor generation_config.json names an end-of-turn token (eos_token_id)")
    return tuple(found)
