"""Problems to prompts: the same ids, positions and pixels as transformers, and nothing opened that was not given."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import MODEL, make_model, make_problem, picture, processor, tokenizer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rewards.answers.extract import last_answer
from sapo_vl.data.problem_set import problem_from_row
from sapo_vl.model.chat import Chat, load_processor
from sapo_vl.model.loading import ModelConfig, ModelError
from sapo_vl.model.prompt_errors import CallsNotWritten, PromptError, SpecialToken
from sapo_vl.model.tiny import tiny_processor
from sapo_vl.types import Problem

OPENED: list[str] = []  # what Python code opened or connected to while _watch was on
_watch = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watch:
        return
    if event in ("socket.connect", "socket.getaddrinfo") or (event == "open" and "hostname" in str(args[0])):
        OPENED.append(f"{event} {args[:2]}")


sys.addaudithook(_audit)


@pytest.fixture
def nothing_opened() -> Iterator[None]:
    global _watch
    OPENED.clear()
    _watch = True
    yield
    _watch = False
    assert OPENED == []


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("dense", 0)


@pytest.fixture(scope="module")
def chat(model: Any) -> Chat:
    return Chat(processor(), model, MODEL)


def problem(content: Any, images: tuple[Image.Image, ...] = (), role: str = "user") -> Problem:
    return Problem(id="p1", task="t", messages=({"role": role, "content": content},), images=images)


@pytest.mark.parametrize("sizes", [[], [(48, 32)], [(32, 80), (64, 16)], [(16, 16), (128, 128), (80, 48)]])
def test_same_as_transformers(chat: Chat, model: Any, sizes: list[tuple[int, int]], seed: int) -> None:
    """ids, pixels and grids of the folder's own processor, positions of the whole model's get_rope_index."""
    item = make_problem(np.random.default_rng(seed), "p", sizes)
    ours = chat.prompt(item)

    content = [dict(part) for part in item.messages[0]["content"]]
    text = processor().apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    theirs = processor()(text=[text], images=list(item.images) or None, return_tensors="pt")
    assert ours.ids.tolist() == theirs["input_ids"][0].tolist()
    positions, _ = model.model.get_rope_index(
        theirs["input_ids"],
        mm_token_type_ids=theirs["mm_token_type_ids"],
        image_grid_thw=theirs.get("image_grid_thw"),
        attention_mask=torch.ones_like(theirs["input_ids"]),
    )
    assert ours.positions.tolist() == positions[:, 0].tolist()
    assert ours.next_position == int(positions.max()) + 1
    if sizes:
        assert ours.pixel_values is not None and ours.image_grid_thw is not None
        assert ours.image_grid_thw.tolist() == theirs["image_grid_thw"].tolist()
        assert ours.image_grid_thw.tolist() == [[1, h // 8, w // 8] for w, h in sizes]
        torch.testing.assert_close(ours.pixel_values, theirs["pixel_values"], rtol=0, atol=1e-6)
    else:
        assert ours.pixel_values is None and ours.image_grid_thw is None
        assert ours.positions.tolist() == [list(range(len(ours.ids)))] * 3


def test_positions_by_hand(chat: Chat) -> None:
    """A 48 x 32 image is 3 x 2 tokens: one time step, rows and columns counted from where it starts."""
    item = problem([{"type": "image"}, {"type": "text", "text": "red"}], (Image.new("RGB", (48, 32)),))
    prompt = chat.prompt(item)
    at = np.flatnonzero(prompt.ids == chat.image_token_id)
    first = int(at[0])
    assert len(at) == 6
    assert (prompt.positions[:, at] - first).tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    after = prompt.positions[:, at[-1] + 1 :]
    assert (after[0] == after[1]).all() and (after[0] == after[2]).all()
    assert after[0, 0] == first + 3  # the longer side of the image, not its 6 tokens


def test_compact_and_expanded_ids(chat: Chat, seed: int) -> None:
    prompt = chat.prompt(make_problem(np.random.default_rng(seed), "p", [(48, 32), (16, 64)]))
    pad = chat.image_token_id
    assert (prompt.compact_ids == pad).sum() == 2 and (prompt.ids == pad).sum() == 6 + 4
    expanded: list[int] = []
    counts = iter([6, 4])
    for i in prompt.compact_ids.tolist():
        expanded += [pad] * next(counts) if i == pad else [i]
    assert expanded == prompt.ids.tolist()


def test_content_forms(chat: Chat) -> None:
    as_text = chat.prompt(problem("how many red"))
    as_parts = chat.prompt(problem([{"type": "text", "text": "how "}, {"type": "text", "text": "many red"}]))
    assert as_text.ids.tolist() == as_parts.ids.tolist()
    text = tokenizer().decode(as_text.ids, skip_special_tokens=False)
    assert text == "<|im_start|>user\nhow many red<|im_end|>\n<|im_start|>assistant\n"


def test_several_turns(chat: Chat) -> None:
    turns = ({"role": "system", "content": "count"}, {"role": "user", "content": "red"})
    prompt = chat.prompt(Problem(id="p", task="t", messages=turns))
    text = tokenizer().decode(prompt.ids, skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\ncount<|im_end|>\n<|im_start|>user\nred<|im_end|>")


# As the template of Qwen3-VL writes calls and what tools give, without its words on the tools themselves.
CALLING = (
    "{%- macro said(content) %}{% if content is string %}{{ content }}{% else %}{% for c in content %}{{ c.text }}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "{%- for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ said(m.content) }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ said(m.content) }}"
    "{% for call in m.tool_calls or [] if m.role == 'assistant' %}{% if m.content or not loop.first %}{{ '\n' }}"
    "{% endif %}{% if call.function %}{% set call = call.function %}{% endif %}"
    '<tool_call>\n{"name": "{{ call.name }}", "arguments": '
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}{% endif %}"
    "}\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def calling(model: Any) -> Chat:
    """A chat whose template knows tool_calls."""
    made = copy.deepcopy(processor())
    made.chat_template = CALLING
    return Chat(made, model, MODEL)


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def talk(*turns: dict[str, Any]) -> Problem:
    """A problem of these turns, as it is read from a row."""
    row = {"id": "p1", "task": "t", "images": [], "answer": "5", "solution": "", "reward": "", "meta": "{}"}
    return problem_from_row({**row, "messages": json.dumps(turns)})


def test_the_model_sees_the_calls_of_a_row(calling: Chat) -> None:
    asked = talk(
        {"role": "user", "content": "red?", "tool_calls": None, "name": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call("count", {"of": "red \u00e9"}), call("b", '{"x":1}')],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "assistant", "content": "so", "tool_calls": [{"name": "add", "arguments": {}}]},
        {"role": "tool", "content": [{"type": "text", "text": "5"}], "name": "add"},
    )
    assert calling.tokenizer.decode(calling.prompt(asked).ids, skip_special_tokens=False) == (
        "<|im_start|>user\nred?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "count", "arguments": {"of": "red \u00e9"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "b", "arguments": {"x":1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        '<|im_start|>assistant\nso\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_calls_that_the_template_leaves_out_are_refused(chat: Chat, calling: Chat) -> None:
    asks, answers = {"role": "user", "content": "red?"}, {"role": "tool", "content": "3"}
    calls = [call("count", {"of": "red"})]
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    for one, turns, index in (
        (chat, (asks, {**called, "content": "so"}, answers), 1),  # knows no calls
        (calling, ({**asks, "tool_calls": calls}, answers), 0),  # writes those of the assistant
        (
            calling,
            (asks, {"role": "assistant", "content": "", "tool_calls": calls}, {**answers, "tool_calls": calls}),
            2,
        ),
    ):
        with pytest.raises(CallsNotWritten, match=rf"'p1': .* tool_calls of turn {index};"):
            one.prompt(talk(*turns))


def test_no_call_and_nulls_are_as_if_they_were_not_there(chat: Chat, calling: Chat) -> None:
    plain = ({"role": "assistant", "content": ""}, {"role": "user", "content": "red?"})
    nulls = tuple({**turn, "tool_calls": empty, "name": None} for turn, empty in zip(plain, (None, []), strict=True))
    for one in (chat, calling):
        assert one.prompt(talk(*plain)).ids.tolist() == one.prompt(talk(*nulls)).ids.tolist()


@pytest.mark.parametrize(
    "further",
    [
        {"tool_calls": [call("a<|im_end|>", {})]},
        {"tool_calls": [call("a", {"x": ["y", {"z": "<|im_end|>"}]})]},
        {"tool_calls": [call("a", {"<|im_end|>": 1})]},
        {"tool_calls": [call("a", '{"x": "<|im_end|>"}')]},
        {"reasoning_content": "<|im_end|>"},
    ],
)
def test_a_call_with_a_special_token_is_refused(calling: Chat, further: dict[str, Any]) -> None:
    turns = ({"role": "assistant", "content": "so", **further}, {"role": "tool", "content": "3"})
    with pytest.raises(SpecialToken, match=r"the 'assistant' contains the special token <\|im_end\|>"):
        calling.prompt(talk(*turns))


def test_images_go_to_their_places(chat: Chat, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = picture(rng, 32, 16), picture(rng, 16, 48)
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    both = chat.prompt(problem(parts, (a, b)))
    one = chat.prompt(problem(parts[:1], (a,)))
    two = chat.prompt(problem(parts[:1], (b,)))
    assert both.pixel_values is not None and one.pixel_values is not None and two.pixel_values is not None
    assert torch.equal(both.pixel_values, torch.cat([one.pixel_values, two.pixel_values]))


@pytest.mark.parametrize(
    ("content", "images", "message"),
    [
        ("red <|image_pad|> blue", 0, r"special token <\|image_pad\|>"),
        ([{"type": "image"}, {"type": "text", "text": "<|image_pad|>"}], 1, r"special token <\|image_pad\|>"),
        ([{"type": "image"}, {"type": "image"}], 1, "more image parts than images"),
        ([{"type": "image"}], 2, "1 of 2 images are in no message"),
        ("red", 1, "1 of 1 images are in no message"),
        ([{"type": "video"}], 0, "message part"),
        ([{"type": "text"}], 0, "message part"),
        ([{"type": "text", "text": 3}], 0, "message part"),
    ],
)
def test_refused(chat: Chat, content: Any, images: int, message: str) -> None:
    item = problem(content, (Image.new("RGB", (16, 16)),) * images)
    with pytest.raises(PromptError, match=message) as caught:
        chat.prompt(item)
    assert "'p1'" in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "/etc/hostname"},
        {"type": "image", "image": "file:///etc/hostname"},
        {"type": "image", "image": "http://127.0.0.1:9/x.png"},
        {"type": "image", "image_url": "http://127.0.0.1:9/x.png"},
        {"type": "image", "image": "data:image/png;base64,AAAA"},
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}},
        {"type": "video", "video": "/etc/hostname"},
        {"type": "text", "text": "a", "image": "/etc/hostname"},
    ],
)
def test_no_path_or_address_is_followed(chat: Chat, part: dict[str, Any], nothing_opened: None) -> None:
    """Whatever stands in a message, only the row's own images are used; a foreign key is at best ignored."""
    image = (Image.new("RGB", (16, 16)),) if "image" in part["type"] else ()
    if part["type"] == "text":
        assert chat.prompt(problem([part])).pixel_values is None
        return
    with pytest.raises(PromptError, match="message part"):
        chat.prompt(problem([part], image))


def test_too_long(model: Any) -> None:
    image = (Image.new("RGB", (64, 64)),)
    item = problem([{"type": "image"}, {"type": "text", "text": "red"}], image)
    length = len(Chat(processor(), model, MODEL).prompt(item).ids)
    short = MODEL.model_copy(update={"max_prompt_tokens": length - 1})
    with pytest.raises(PromptError, match=f"prompt of {length} tokens.*is {length - 1};"):
        Chat(processor(), model, short).prompt(item)
    exact = MODEL.model_copy(update={"max_prompt_tokens": length})
    assert len(Chat(processor(), model, exact).prompt(item).ids) == length


@given(width=st.integers(8, 300), height=st.integers(8, 300))
def test_image_sizes_stay_in_bounds(model: Any, width: int, height: int) -> None:
    """Both sides a multiple of 16 px, and the area within the bounds of the config."""
    config = ModelConfig(min_pixels=1024, max_pixels=8192)
    chat = Chat(processor(), model, config)
    prompt = chat.prompt(problem([{"type": "image"}], (Image.new("RGB", (width, height)),)))
    assert prompt.image_grid_thw is not None and prompt.pixel_values is not None
    (t, rows, columns), *rest = prompt.image_grid_thw.tolist()
    assert not rest and t == 1 and rows % 2 == columns % 2 == 0
    assert 1024 <= rows * 8 * columns * 8 <= 8192
    assert (prompt.ids == chat.image_token_id).sum() == rows * columns // 4 == len(prompt.pixel_values) // 4


def test_response_ids_round_trip(chat: Chat) -> None:
    text = "<think> red </think> <answer> 3 </answer>"
    ids = chat.response_ids(text)
    assert ids[-1] == chat.eos_ids[0] and ids.dtype == np.int64
    assert chat.decode(ids) == "<think> red</think><answer> 3</answer>"  # the tags take the space before them
    with pytest.raises(PromptError, match=r"special token <\|image_pad\|>"):
        chat.response_ids("an <|image_pad|>")


def test_tags_that_a_tokenizer_calls_special_are_read_all_the_same(model: Any) -> None:
    """As fine-tuners add them. Special tokens are else no text of a response."""
    text = "<think>three circles</think><answer>3</answer>"
    other = copy.deepcopy(processor())
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    other.tokenizer.add_special_tokens({"additional_special_tokens": tags})
    assert "<answer>" not in other.tokenizer.decode(other.tokenizer(text).input_ids, skip_special_tokens=True)
    chat = Chat(other, model, MODEL)
    ids = chat.response_ids(text)
    assert chat.decode(ids) == text and last_answer(chat.decode(ids)) == "3"
    assert chat.decode([*ids, *chat.eos_ids, *chat.banned_ids]) == text


def test_a_picture_that_is_too_thin_once_it_is_rounded(chat: Chat) -> None:
    """40 x 8000 pixels differ by 200; made smaller in whole blocks, 16 x 6192 more: vLLM would raise, in a run."""
    config = MODEL.model_copy(update={"max_pixels": 192_200, "max_prompt_tokens": 9000})
    other = chat.twin()
    other.config = config
    with pytest.raises(PromptError, match=r"16 x 6192 pixels once it is resized") as refused:
        other.prompt(problem([{"type": "image"}], (Image.new("RGB", (40, 8000)),)))
    assert refused.value.kind == "refused by the processor"


def test_more_images_than_the_engine_takes(model: Any, chat: Chat) -> None:
    images = (Image.new("RGB", (32, 32)),) * 3
    asked = problem([{"type": "image"}] * 3 + [{"type": "text", "text": "which?"}], images)
    few = chat.twin()
    for limit in (0, 3):
        few.max_images = limit
        assert len(few.prompt(asked).images) == 3
    few.max_images = 2
    with pytest.raises(PromptError, match=r"3 images, rollout\.vllm\.max_images_per_prompt is 2") as refused:
        few.prompt(asked)
    assert refused.value.kind == "too many images"


def test_banned_ids_are_the_four_vision_tokens(chat: Chat) -> None:
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    assert set(chat.banned_ids) == {tokenizer().convert_tokens_to_ids(n) for n in names}


def test_blank_pixels_are_one_image_token(chat: Chat, model: Any) -> None:
    pixels, grid = chat.blank_pixels()
    features = model.model.get_image_features(pixels, grid).pooler_output
    assert torch.cat(list(features)).shape[0] == 1


def test_a_processor_of_another_patch_size_is_refused(model: Any) -> None:
    other = tiny_processor(tokenizer())
    other.image_processor.patch_size = 16
    with pytest.raises(ModelError, match="patches of 16 pixels, the model wants 8"):
        Chat(other, model, MODEL)


def test_load_processor(tmp_path: Any) -> None:
    folder = tmp_path / "whole"
    processor().save_pretrained(folder)
    assert load_processor(str(folder)).image_processor.patch_size == 8
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"no usable processor|lacks"):
        load_processor(str(empty))
