"""What our calls in vLLM's workers read, without vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sapo_vl.rollout.vllm.worker import mapped_tensors


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tensor_is_in_memory_only_where_it_is_looked_at(tmp_path: Path) -> None:
    """Of a weight of which a worker keeps a half, the other half is not read."""
    value = torch.arange(4 * 2**20, dtype=torch.float32).reshape(1024, -1)  # 16 MiB
    save_file({"a": value}, tmp_path / "model.safetensors")
    [(name, tensor)] = mapped_tensors([tmp_path / "model.safetensors"])
    (tmp_path / "model.safetensors").unlink()  # a mapped file lives until it is let go
    assert name == "a" and in_memory(tmp_path) < 0.1 * value.nbytes
    assert torch.equal(tensor.narrow(0, 512, 512).clone(), value[512:])
    assert 0.5 * value.nbytes <= in_memory(tmp_path) < 0.6 * value.nbytes


def in_memory(folder: Path) -> int:
    """Bytes of mapped files of `folder` that this process holds."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            ours = str(folder) in line
        elif ours and first == "Rss:":
            total += int(rest[0]) * 1024
    return total
