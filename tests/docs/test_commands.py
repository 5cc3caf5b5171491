"""Every command of the documentation, as it stands: its options are there, and its settings make a config."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from doc_blocks import ROOT, Command, commands, pages

from sapo_vl.commands.cli import make_parser
from sapo_vl.config import load_config

ALL = [command for page in pages() for command in commands(page)]
SCRIPTS = {
    "train_vl_moe": ["run", "--out", "RUN", "--config", "configs/tiny_moe.yaml"],
    "train_vl_dense": ["run", "--out", "RUN", "--config", "configs/tiny_dense.yaml"],
    "cold_start": ["sft", "--out", "RUN"],
    "evaluate": ["eval", "--out", "RUN"],
    "reproduce_paper": ["reproduce", "--out", "RUN", "--config", "configs/experiments/tiny.yaml"],
}
NUMBERS = {"PORT": "8100", "MB": "24"}  # what stands for a number
# Commands whose key=value words are settings of a run; those of others are their own.
CONFIGURED = ("run", "sft", "train", "eval", "plan", "launch", "serve", "rescore")


def arguments(command: Command) -> list[str]:
    """What `sapo-vl` gets; [] for a command of another program, whose file must be there."""
    text = re.sub(r"\[([^\[\]=]*)\]", r"\1", command.text) if "url" not in command.text else command.text
    words = shlex.split(text.split("; ")[0], comments=True)
    words = [NUMBERS.get(w, w) for w in words if not re.fullmatch(r"[A-Z_]+=\S*|&", w)]
    if words[0] == "torchrun":
        return words[words.index("sapo_vl") + 1 :]
    if words[0] != "sapo-vl":
        script = Path(words[1])
        if words[0] == "bash" and script.stem in SCRIPTS:
            return [*SCRIPTS[script.stem], *words[2:]]
        assert (ROOT / script).is_file() or script.parts[0] == "mine", command
        return []
    return words[1:]


@pytest.mark.parametrize("command", ALL, ids=[f"{c.page}: {c.text[:60]}" for c in ALL])
def test_it_can_be_given(command: Command) -> None:
    words = arguments(command)
    if not words:
        return
    if words[:2] == ["recipe", "check"]:
        words[0] = "data"
    args, rest = make_parser().parse_known_args(words)
    assert all("=" in word and not word.startswith("-") for word in rest), rest
    assert not rest or args.takes_pairs
    if words[0] in CONFIGURED:
        named = getattr(args, "config", None)
        config = ROOT / named if named and "/" in str(named) else ROOT / "configs" / "qwen3_vl_30b_a3b.yaml"
        assert config.is_file(), named
        pairs = [word.replace("...", "x") for word in rest]
        load_config(config, [p for p in pairs if not p.startswith("rewards.params.number.x")])


def test_there_are_commands() -> None:
    """The pattern finds them: each page of the documentation that has a command is here."""
    assert len(ALL) > 80 and {"docs/start.md", "docs/examples.md", "docs/rollouts.md"} <= {c.page for c in ALL}
