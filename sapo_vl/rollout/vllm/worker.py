"""Calls that we add to vLLM's workers (its `worker_extension_cls`), for `collective_rpc` in process or over HTTP.

vLLM mixes the class into its worker; `self` is that worker. Runs inside vLLM's process.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


class WorkerExtension:
    """Method names start with `sapo_`, so that they cannot meet one of vLLM's.

    Over HTTP only text comes in (`/collective_rpc`), and what is returned must be plain JSON.
    """

    # Of vLLM's worker.
    model_runner: Any
    vllm_config: Any
    device: Any
    reload_weights: Any

    _sapo_folder = ""  # what was taken over last
    _sapo_group = ""  # the trainer's name for the NCCL group that this process is in

    def sapo_settings(self) -> dict[str, Any]:
        """The settings that a trainer depends on, for it to compare with its own."""
        model = self.vllm_config.model_config
        processor = model.get_multimodal_config().mm_processor_kwargs or {}
        return {
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs_mode": str(model.logprobs_mode),
            "max_model_len": int(model.max_model_len),
            "vocab_size": int(model.get_vocab_size()),
            "image_size": dict(processor.get("size") or {}),
            "routes": bool(self.vllm_config.aux_output_config.enable_return_routed_experts),
            "transfer": str(getattr(self.vllm_config.weight_transfer_config, "backend", "")),
        }

    def sapo_load_weights(self, folder: str, tensors: str) -> str:
        """Takes over the weights in `folder`, which has so many tensors. Returns "", or why it did not begin.

        The folder is looked at first: a reload that fails on the way leaves a model that ends the server at the next
        request. vLLM's own `reload_weights(weights_path=...)` also remembers the folder as the model's, and ours is
        deleted soon after.
        """
        files = sorted(Path(folder).glob("*.safetensors"))
        count = 0
        for path in files:
            with safe_open(path, framework="pt") as f:
                count += len(f.keys())
        if count != int(tensors):
            return f"{folder} has {count} of {tensors} tensors as this server sees it; is the file system shared?"
        self.reload_weights(weights_iterator=mapped_tensors(files))
        self._sapo_folder = folder
        return ""

    def sapo_base(self) -> str:
        """Says which model this process was started from."""
        from sapo_vl.rollout.vllm.adapters import base_digest

        model = self.vllm_config.model_config
        return base_digest(model.model, model.revision)

    def sapo_load_adapters(self, folder: str, tensors: str, base: str) -> str:
        """Takes over the model of `base` (as sapo_base says it) with the adapters in `folder`, so many tensors.

        Returns "", or why it did not begin.
        """
        # transformers comes with it, which servers of whole weights need not import for us.
        from sapo_vl.model.errors import ModelError
        from sapo_vl.model.folder import local_folder
        from sapo_vl.rollout.vllm.adapters import adapted_weights

        model = self.vllm_config.model_config
        try:
            if self.sapo_base() != base:
                return (
                    f"the model it was started from, {model.model}, is not the one that the run trains; start it with "
                    "the run's model.path"
                )
            path = local_folder(model.model, model.revision)
            weights = adapted_weights(path, Path(folder), int(tensors), model.dtype, self.device)
        except ModelError as error:
            return str(error)
        self.reload_weights(weights_iterator=weights)
        self._sapo_folder = folder
        return ""

    def sapo_has(self, folder: str) -> str:
        """Returns "" if the weights are those of `folder`, else what they are: those of a process that was started
        again since are not."""
        return "" if self._sapo_folder == folder else f"its weights are of {self._sapo_folder or 'its start'!r}"

    def sapo_expect(self, folder: str, group: str) -> str:
        """Notes the weights that are sent over NCCL next, by a name. Noted before: a process that is started again on
        the way is none that has them. Returns "" if this process is in `group`."""
        self._sapo_folder = folder
        return "" if self._sapo_group == group else f"it is in {self._sapo_group or 'no group'!r}"

    def sapo_joined(self, group: str) -> None:
        """Notes the group that vLLM's transfer engine has just joined."""
        self._sapo_group = group

    def sapo_repack_cpu(self) -> int:
        """Builds anew the packed copies of weights that a reload leaves behind in vLLM's CPU build.

        After `reload_weights` (a) the grouped-gemm experts hold plain values where their kernel reads packed ones,
        and (b) an output projection tied to the embeddings still multiplies by the packed copy of the old weight.
        Returns how many modules were repacked.
        """
        model = self.model_runner.get_model()
        modules: list[Any] = list(model.modules())
        embeddings = {m.weight.data_ptr() for m in modules if type(m).__name__ == "VocabParallelEmbedding"}
        stale: list[tuple[Any, Any]] = []  # (what packs, the module it packs)
        for module in modules:
            method = getattr(module, "quant_method", None)
            kernel = getattr(method, "moe_kernel", None)
            if kernel is not None:
                stale.append((kernel.fused_experts, module))
            elif type(module).__name__ == "ParallelLMHead" and module.weight.data_ptr() in embeddings:
                stale.append((method, module))
        for packer, module in stale:
            packer.process_weights_after_loading(module)
        return len(stale)


def mapped_tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that lie in their files: what is copied out of one is read, the rest of it is not.

    vLLM's loaders copy what a worker keeps, so a worker among several reads its part. The workers of one machine share
    what the kernel has read. A file may be deleted as soon as its tensors are let go.
    """
    for path in files:
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118
                yield name, f.get_tensor(name)
