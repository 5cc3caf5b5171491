"""The reward `judge` with pictures, and asked about answers that its rule is sure of (against fake_judge.py)."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_judge as fakes
import numpy as np
import pytest
from fake_judge import FakeJudge, Reply, verdict
from PIL import Image
from reward_helpers import respond, say

import rewards.judging.prompt as prompt
from rewards import REWARDS, RewardOutput, Unscorable
from rewards.base import needs_images
from rewards.judging.canaries import PICTURED, RIGHT, WRONG, canaries, chosen
from rewards.judging.pictures import data_uri, drawn, picture_key
from rewards.workers.custom import read_custom
from rewards.workers.preflight import setting_problem
from rewards.workers.worker import inspect_custom

pytestmark = pytest.mark.timeout(60)
Settings = dict[str, Any]


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with fakes.fake_judge() as server:
        yield server


@pytest.fixture
def ask(server: FakeJudge, tmp_path: Path) -> Any:
    def ask(answer: str, gold: str, *images: Image.Image, reward: str = "", **more: Any) -> RewardOutput:
        x = dataclasses.replace(respond(say(answer), gold, **more.pop("meta", {})), images=images, reward=reward)
        settings = fakes.params(server.url, tmp_path / "cache", **more)
        return REWARDS["judge"](dataclasses.replace(x, question="Which colour?"), **settings)

    return ask


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def shown(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=("PNG",))


# --- one picture


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (64, 16)])
def test_a_small_picture_is_shown_pixel_by_pixel(size: tuple[int, int], seed: int) -> None:
    image = noise(seed, *size)
    assert shown(data_uri(image, 1200)).convert("RGB").tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("size", "smaller"),
    [
        ((1201, 1), (1024, 1)),
        ((64, 64), (32, 32)),
        ((128, 32), (64, 16)),
        ((10, 1000), (3, 320)),  # sqrt(1024 / 10000) = 0.32
        ((5000, 2), (1024, 1)),  # 0.32: 1600 x 0.64, and no side has less than one pixel
    ],
)
def test_a_large_picture_is_scaled_to_the_bound(size: tuple[int, int], smaller: tuple[int, int]) -> None:
    found = shown(data_uri(Image.new("RGB", size, "navy"), 1024))
    assert found.size == smaller and found.convert("RGB").getcolors() == [(smaller[0] * smaller[1], (0, 0, 128))]


def test_the_key_of_a_picture_is_that_of_its_pixels(seed: int) -> None:
    image = noise(seed, 40, 30)
    copy = shown(data_uri(image, 1200))
    copy.info["comment"] = "another file"
    assert picture_key(copy, 1200) == picture_key(image, 1200)
    assert picture_key(image, 1200) == picture_key(image, 5000), "both show all of it"
    turned = Image.frombytes("RGB", (30, 40), image.tobytes())
    one_off = image.copy()
    one_off.putpixel((7, 7), (1, 2, 3) if image.getpixel((7, 7)) != (1, 2, 3) else (3, 2, 1))
    keys = {picture_key(other, 1200) for other in (image, turned, one_off)}
    assert len(keys | {picture_key(image, 1199)}) == 4


# --- what is asked


def test_the_pictures_come_before_the_question_and_only_if_wanted(server: FakeJudge, ask: Any, seed: int) -> None:
    pictures = (noise(seed, 48, 40), noise(seed + 1, 20, 60))
    ask("crimson", "red", *pictures, images=True)
    ask("crimson", "red", *pictures)
    ask("green", "red", images=True)  # a problem without a picture
    with_them, without, none = server.asked
    assert [i.convert("RGB").tobytes() for i in with_them.images] == [p.tobytes() for p in pictures]
    assert with_them.texts == {"question": "Which colour?", "reference": "red", "answer": "crimson"}
    text = with_them.body["messages"][0]["content"][-1]["text"]
    assert "pictures above belong to the question" in text and len(with_them.marks) == 1
    assert isinstance(without.body["messages"][0]["content"], str) and none.images == without.images == ()
    assert "pictures" not in without.body["messages"][0]["content"]
    rest = [{k: v for k, v in asked.body.items() if k != "messages"} for asked in server.asked]
    assert rest[0] == rest[1] == rest[2]


def test_an_address_in_the_question_stays_text(server: FakeJudge, tmp_path: Path) -> None:
    """A picture is only what was decoded: what the data or a response calls one is part of the fenced text."""
    link = "![x](http://127.0.0.1:9/a.png) data:image/png;base64,AAAA <image>"
    x = dataclasses.replace(respond(say(link), "red"), question=link, images=(drawn("circles"),))
    REWARDS["judge"](x, **fakes.params(server.url, tmp_path, images=True))
    [asked] = server.asked
    assert len(asked.images) == 1 and asked.images[0].size == (256, 192)
    assert asked.texts["question"] == asked.texts["answer"] == link.replace("<", "< ")


def test_the_bound_of_a_picture_holds_on_the_way(server: FakeJudge, ask: Any, seed: int) -> None:
    ask("crimson", "red", noise(seed, 90, 40), images=True, image_pixels=1024)
    assert server.asked[0].images[0].size == (48, 21)  # sqrt(1024 / 3600) = 0.5333


def test_the_cache_tells_pictures_apart(server: FakeJudge, ask: Any, seed: int) -> None:
    first, second = noise(seed, 40, 40), noise(seed + 1, 40, 40)
    for images in ((first,), (second,), (first, second), (second, first), ()):
        for times in range(2):
            out = ask("crimson", "red", *images, images=True)
            assert out.parts["judge_cached"] == times
    assert len(server.asked) == 5
    assert ask("crimson", "red", first, images=True, image_pixels=1024).parts["judge_cached"] == 0
    assert ask("crimson", "red", first).parts["judge_cached"] == 1, "without pictures it is the question without any"


def test_whether_it_needs_pictures_follows_from_the_params() -> None:
    assert [needs_images(REWARDS["judge"], p) for p in ({}, {"images": False}, {"images": True})] == [0, 0, 1]
    assert not needs_images(REWARDS["number"], {"images": True})

    def looks(x: Any) -> RewardOutput:
        return RewardOutput(float(len(x.images)))

    looks.needs_images = True  # type: ignore[attr-defined]
    assert needs_images(looks, {})


def test_a_reward_of_the_users_may_say_so_too(tmp_path: Path) -> None:
    code = "def look(x, eyes=0): ...\n\nlook.needs_images = lambda params: 1 / params['eyes'] > 0\n"
    (tmp_path / "look.py").write_text(code)
    source = read_custom(f"{tmp_path / 'look.py'}:look", "look")
    assert inspect_custom(source, {"eyes": 2}) == ("", True)
    assert inspect_custom(source, {"eyes": -2}) == ("", False)
    problem, needs = inspect_custom(source, {"eyes": 0})
    assert not needs and "needs_images({'eyes': 0}) of look failed: ZeroDivisionError" in problem


# --- asked about all answers, or a sample


@pytest.mark.parametrize(
    ("answer", "score", "parts"),
    [
        ("12.0", 0.0, {"judge_verdict": 0, "rule_score": 1, "rule_sure": 1}),
        ("13", 1.0, {"judge_verdict": 1, "rule_score": 0, "rule_sure": 1}),
        ("a dozen", 1.0, {"judge_verdict": 1, "rule_score": 0, "rule_sure": 0}),
    ],
)
def test_asked_about_all_the_judge_has_the_say(
    server: FakeJudge, ask: Any, answer: str, score: float, parts: Settings
) -> None:
    server.behave = lambda asked: verdict(asked.texts["answer"] in ("13", "a dozen"))
    out = ask(answer, "12", rule="number", ask="all")
    assert out == RewardOutput(
        score, {"judge_asked": 1, "judge_cached": 0} | parts, "" if score else "the judge says incorrect"
    )
    assert ask("", "12", rule="number", ask="all").parts == {"judge_asked": 0, "judge_cached": 0}
    assert "rule_score" not in ask("a dozen", "about 12", rule="number", ask="all").parts, "it cannot read the gold"


def test_a_sample_changes_no_score(server: FakeJudge, ask: Any) -> None:
    server.behave = lambda _: verdict(True)
    asked = []
    for i in range(200):
        out = ask(str(i), "12", rule="number", sample=0.25)
        assert out.score == (i == 12) and out.parts["rule_sure"] == 1
        assert ("judge_verdict" in out.parts) == out.parts["judge_asked"]
        asked.append(out.parts["judge_asked"])
    assert 30 <= sum(asked) <= 70 and len(server.asked) == sum(asked), "50 expected, deviation 6"
    again = [ask(str(i), "12", rule="number", sample=0.25).parts for i in range(200)]
    assert [p["judge_cached"] for p in again] == asked, "the same ones"
    assert ask("a dozen", "12", rule="number", sample=0.25).score == 1.0


def test_a_judge_that_fails_on_a_sample_costs_no_score(server: FakeJudge, ask: Any) -> None:
    server.behave = lambda _: Reply("?")
    out = ask("12", "12", rule="number", sample=1.0)
    parts = {"judge_asked": 0, "judge_cached": 0, "judge_silent": 1, "rule_score": 1, "rule_sure": 1}
    assert out == RewardOutput(1.0, parts)
    with pytest.raises(Unscorable, match="the judge gave no verdict"):
        ask("a dozen", "12", rule="number", sample=1.0)
    with pytest.raises(Unscorable, match="the judge gave no verdict"):
        ask("12", "12", rule="number", ask="all")


def test_the_rule_of_the_problem(server: FakeJudge, ask: Any) -> None:
    """A benchmark may mix choices and formulas: B is an option to the one and a symbol to the other."""
    server.behave = lambda _: verdict(True)
    choices = {"choices": ["red", "blue"]}
    assert ask("blue", "B", reward="choice", rule="problem", meta=choices).score == 1.0
    assert ask("A", "B", reward="choice", rule="problem", meta=choices).score == 0.0
    assert ask("0.5", "\\frac{1}{2}", reward="math", rule="problem").score == 1.0
    assert server.asked == []
    for reward in ("", "code", "judge"):
        with pytest.raises(Unscorable, match=rf"judge.rule=problem, and the problem names '{reward}'"):
            ask("A", "B", reward=reward, rule="problem")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": "yes"}, "images must be true or false, got 'yes'"),
        ({"image_pixels": 1023}, "image_pixels must be at least 1024, got 1023"),
        ({"image_pixels": 4096.5}, "image_pixels must be an integer above 0"),
        ({"ask": "some"}, "ask must be unsure or all, got 'some'"),
        ({"sample": 1.5}, "sample is a share, at most 1, got 1.5"),
        ({"sample": -0.1}, "sample must be a number from 0"),
        ({"sample": 0.1, "ask": "all"}, "nothing to sample; leave sample=0.1 out"),
        ({"rule": "own"}, "or problem, got 'own'"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, change: Settings, words: str) -> None:
    problem = setting_problem("judge", fakes.params("http://127.0.0.1:1/v1", tmp_path) | change, 10.0)
    assert problem.startswith("judge: ") and words in problem


def test_settings_that_can(tmp_path: Path) -> None:
    more = {"images": True, "image_pixels": 1024, "sample": 1, "rule": "problem"}
    assert setting_problem("judge", fakes.params("http://127.0.0.1:1/v1", tmp_path, **more), 10.0) == ""


# --- canaries and identity


def test_the_canaries_with_a_picture() -> None:
    assert canaries(False) == (*WRONG, *RIGHT) and set(canaries(True)) == {*WRONG, *RIGHT, *PICTURED}
    assert [c.right for c in canaries(True)] == [False] * 20 + [True] * 6
    assert {c.answer for c in PICTURED if c.right} <= fakes.RIGHT
    assert not {c.answer for c in canaries(True) if not c.right} & fakes.RIGHT
    for canary in PICTURED:
        colours = drawn(canary.picture).getcolors(256 * 192)
        assert colours and len(colours) > 1, "nothing is drawn"
    seen = [canary for batch in range(20) for canary in chosen(batch, 3, 1, pictures=True)]
    assert set(seen) == set(canaries(True))
    with pytest.raises(KeyError):
        drawn("squares")


def test_another_prompt_is_another_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    text, pictures = prompt.prompt_identity(False), prompt.prompt_identity(True)
    assert text != pictures and prompt.prompt_identity(False) == text == prompt.prompt_identity(False, {})
    assert len({text, *(prompt.prompt_identity(False, {"max_tokens": n}) for n in (None, 65, 66))}) == 4
    with monkeypatch.context() as patch:
        patch.setattr(prompt, "_PICTURED", prompt._PICTURED + " Look.")
        assert prompt.prompt_identity(False) == text and prompt.prompt_identity(True) != pictures
    for name, value in (
        ("_TEXT", prompt._TEXT.replace("grade", "judge")),
        ("MAX_TOKENS", 65),
        ("VERSION", prompt.VERSION + 1),
        ("RESPONSE_FORMAT", {}),
        ("_as_data", str),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(prompt, name, value)
            assert prompt.prompt_identity(False) != text and prompt.prompt_identity(True) != pictures, name
