"""Members of an enumeration as older Pythons pickle them: read if it is DeepSpeed's, refused otherwise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from sapo_vl.learning.checkpoint import CheckpointError, RestrictedCheckpointEngine


class ByAttribute:
    """Pickled as the call getattr(kind, name)."""

    def __init__(self, kind: Any, name: str) -> None:
        self.kind, self.name = kind, name

    def __reduce__(self) -> tuple[Any, tuple[Any, str]]:
        return getattr, (self.kind, self.name)


def test_a_zero_stage_pickled_by_attribute_is_read(tmp_path: Path) -> None:
    torch.save({"stage": ByAttribute(ZeroStageEnum, "weights")}, tmp_path / "shard.pt")
    assert RestrictedCheckpointEngine().load(str(tmp_path / "shard.pt"))["stage"] is ZeroStageEnum.weights


@pytest.mark.parametrize(("kind", "name"), [(torch.Tensor, "__init__"), (ZeroStageEnum, "__init_subclass__")])
def test_no_other_attribute_is(tmp_path: Path, kind: Any, name: str) -> None:
    torch.save({"stage": ByAttribute(kind, name)}, tmp_path / "shard.pt")
    with pytest.raises((CheckpointError, KeyError)):
        RestrictedCheckpointEngine().load(str(tmp_path / "shard.pt"))
