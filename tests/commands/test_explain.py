"""The reference of settings and commands: taken from the code, and the committed pages are what it gives."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from sapo_vl.commands.cli import main, make_parser
from sapo_vl.config import RunConfig
from sapo_vl.reference.keys import KeyDoc, _section_keys, all_keys
from sapo_vl.reference.pages import config_page, pages
from sapo_vl.strict import Strict

ROOT = Path(__file__).resolve().parents[2]


class Inner(Strict):
    """What the inner
    section is for."""

    size: int = Field(default=3, ge=1, lt=9)  # in rows
    names: tuple[str, ...] = ("a",)


class Outer(Strict):
    """Ignored: the field says more."""

    # Two lines
    # above it.
    way: Literal["", "fast"] = ""
    share: float | None = Field(default=None, gt=0)
    """Below it,
    over two lines."""
    inner: Inner = Inner(size=5)
    other: Inner | None = None  # null = none of it
    free: dict[str, float] = Field(default_factory=dict)  # behind # with a sign | in it


def test_a_key_has_the_comments_around_it_its_bounds_and_the_default_of_its_place():
    found = {k.key: k for k in _section_keys(Outer, Outer(), "")}
    assert list(found) == [
        "way", "share", "inner", "inner.size", "inner.names", "other", "other.size", "other.names", "free",
    ]  # fmt: skip
    assert found["way"] == KeyDoc(key="way", values='"" or fast', default='""', meaning="Two lines above it.")
    assert found["share"] == KeyDoc(
        key="share", values="float or null > 0", default="null", meaning="Below it, over two lines."
    )
    assert found["inner"].is_section and found["inner"].meaning == "What the inner section is for."
    # 5: what the section has here, not what it has elsewhere
    assert found["inner.size"] == KeyDoc(key="inner.size", values="int >= 1 and < 9", default="5", meaning="in rows")
    assert found["inner.names"] == KeyDoc(key="inner.names", values="list of text", default="[a]", meaning="")
    assert found["other"].meaning == "What the inner section is for. Default: null. null = none of it"
    assert found["other.size"].default == "3"
    assert found["free"].values == "mapping of text to float" and found["free"].default == "{}"
    page = config_page([found["free"], found["inner.size"]])
    assert "| `free` | `{}` | mapping of text to float | behind # with a sign \\| in it |" in page
    assert "| `inner.size` | `5` | int >= 1 and &lt; 9 | in rows |" in page


def test_every_setting_is_explained():
    assert [k.key for k in all_keys() if not k.meaning] == []


def test_defaults_are_those_of_a_run():
    """Every default, read as an override of a config that has none, gives the config itself."""
    import yaml

    dump = RunConfig().model_dump(mode="json")
    for k in all_keys():
        if k.is_section or k.key.startswith(("loss.params.", "cold_start.", "model.lora.")):
            continue
        value = dump
        for part in k.key.split("."):
            value = value[part]
        given = yaml.safe_load(k.default)
        assert (float(given) if isinstance(value, float) else given) == value, k


def test_the_committed_pages_are_those_of_the_code():
    """If this fails: sapo-vl explain --write docs/reference"""
    for name, text in pages(make_parser()).items():
        assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("wanted", ["zero.stage", "zero", "offload"])
def test_a_key_a_section_or_a_word_is_explained(wanted: str, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", wanted]) == 0
    said = capsys.readouterr().out
    assert ("zero.stage = 1   (0 or 1 or 2 or 3)" in said) == (wanted != "offload")
    assert ("zero.offload_params = false   (true or false)\n    weights in CPU memory" in said) == (
        wanted != "zero.stage"
    )


def test_an_unknown_key_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["explain", "rolout.engine"]) == 2
    assert "no setting is like 'rolout.engine'; nearest: rollout.engine" in capsys.readouterr().err
