"""The texts of tokens, from the tokenizer.json that a run left or started from."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sapo_vl.strict import read_mapping

FILE = "tokenizer.json"


def find_tokenizer(run: Path) -> Tokenizer | None:
    """From final/, the folder that config.yaml names as the model, or init/; None where none of them has one."""
    config = run / "config.yaml"
    named = (read_mapping(config).get("model") or {}).get("path") if config.is_file() else None
    folders = [run / "final", *([Path(named)] if named else []), run / "cold_start", run / "init"]
    for folder in folders:
        if (folder / FILE).is_file():
            try:
                return Tokenizer.from_file(str(folder / FILE))
            except Exception as error:  # the library raises nothing narrower
                raise ValueError(f"{folder / FILE} is no tokenizer ({error}); delete it, and ids are shown") from error
    return None


def token_texts(tokenizer: Tokenizer, ids: Iterable[int]) -> dict[str, str]:
    """id -> its text alone; a token that is a part of a character is shown as the replacement character."""
    return {str(i): tokenizer.decode([i], skip_special_tokens=False) for i in sorted({*ids})}


def ids_of(groups: Iterable[dict[str, Any]]) -> set[int]:
    """The token ids in groups of `rollouts.read_groups`."""
    found: set[int] = set()
    for group in groups:
        for response in group["responses"]:
            if "tokens" in response:
                found.update(np.frombuffer(base64.b64decode(response["tokens"]["ids"]), "<i4").tolist())
    return found
