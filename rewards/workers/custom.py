"""A reward function in a file outside the repository, named as "path/to/my_reward.py:function"."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rewards.base import RewardFn


class CustomRewardError(ValueError):
    """The file of a custom reward cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class CustomSource:
    """The file as it was when the run started: every worker, also a later one, runs the same code."""

    name: str  # the reward's name in the config and in the data set
    path: str  # absolute path of the file
    function: str  # name of the function in it
    code: str  # content of the file


def read_custom(spec: str, name: str) -> CustomSource:
    """Read the file of `spec`, "path.py:function"; nothing is run.

    Raises:
        CustomRewardError: malformed spec, or the file cannot be read.
    """
    path_text, _, function = spec.rpartition(":")
    if not path_text or not function.isidentifier():
        raise CustomRewardError(f"rewards.path must look like 'my_reward.py:function_name', got {spec!r}")
    path = Path(path_text).expanduser().absolute()
    try:
        code = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CustomRewardError(
            f"rewards.path names the file {path}, which cannot be read ({error}). Give an absolute path, "
            f"or one relative to the directory the run is started from ({Path.cwd()})."
        ) from error
    return CustomSource(name, str(path), function, code)


class _Snapshot(importlib.abc.ExecutionLoader):
    """Imports the text that was read, also if the file has changed since."""

    def __init__(self, source: CustomSource):
        self._source = source

    def get_filename(self, fullname: str) -> str:
        return self._source.path

    def get_source(self, fullname: str) -> str:
        return self._source.code


@functools.cache
def load_custom(source: CustomSource) -> RewardFn:
    """Run the file and return its function. Meant for a worker process: the top level of the file runs here.

    Modules beside the file can be imported from it.

    Raises:
        CustomRewardError: the file has no such function.
        BaseException: whatever the top level of the file raises.
    """
    folder = str(Path(source.path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    name = f"custom_reward_{Path(source.path).stem}"
    spec = importlib.util.spec_from_loader(name, _Snapshot(source))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look a class's module up by name
    spec.loader.exec_module(module)
    function = getattr(module, source.function, None)
    if not callable(function):
        found = sorted(n for n, v in vars(module).items() if isinstance(v, types.FunctionType))
        raise CustomRewardError(
            f"{source.path} has no function {source.function!r} (it has: {', '.join(found) or 'none'}). "
            "Correct the part after the colon in rewards.path."
        )
    return cast(RewardFn, function)
