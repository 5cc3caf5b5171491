"""Calls that we add to vLLM's workers (its `worker_extension_cls`), for `collective_rpc` in process or over HTTP.

vLLM mixes the class into its worker; `self` is that worker. Runs inside vLLM's process.
"""

from __future__ import annotations

from typing import Any


class WorkerExtension:
    """Method names start with `sapo_`, so that they cannot meet one of vLLM's."""

    model_runner: Any  # of vLLM's worker

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
