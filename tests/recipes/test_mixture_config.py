"""The shipped mixture: its shares are exact in every batch, and it fits the folder that the recipe writes."""

from pathlib import Path

from sapo_vl.config import load_config
from sapo_vl.data.sampler import QuotaSampler, quota_counts
from sapo_vl.losses.sapo import SapoConfig

CONFIG = Path(__file__).parents[2] / "configs/mixture_qwen3_vl_30b_a3b.yaml"


def test_the_shares_of_the_mixture() -> None:
    config = load_config(CONFIG)
    counts = quota_counts(config.data.quotas, config.rollout.prompts_per_step)
    # 256 x 0.25 = 64; x 0.15 = 38.4 twice; x 0.35 = 89.6; x 0.1 = 25.6: the two largest remainders get one more
    assert counts == {"math": 64, "code": 38, "logic": 38, "multimodal": 90, "grounding": 26}
    tasks = [task for task in counts for _ in range(200)]
    batch = next(QuotaSampler(tasks, config.data.quotas, 256, seed=0))
    assert {task: sum(tasks[row] == task for row in batch) for task in counts} == counts
    assert config.loss.name == "sapo" and config.loss.loss_params() == SapoConfig(tau_pos=1.0, tau_neg=1.05)
    assert "has not been run on a GPU" in " ".join(CONFIG.read_text().replace("#", " ").split())


def test_it_samples_and_shards_as_the_config_of_its_model() -> None:
    """test_meta_models.py works out that those settings fit the model and its GPUs."""
    config, single = load_config(CONFIG), load_config(CONFIG.with_name("qwen3_vl_30b_a3b.yaml"))
    assert config.rollout.engine == single.rollout.engine == "vllm"
    assert config.rollout.vllm == single.rollout.vllm and config.zero == single.zero
    assert config.batch.tokens_per_micro_batch == single.batch.tokens_per_micro_batch


def test_every_shipped_gpu_config_samples_with_vllm() -> None:
    """The trainer's own model would gather all weights for every token under ZeRO-3."""
    shipped = sorted(CONFIG.parent.glob("*qwen3_vl*.yaml"))
    assert len(shipped) == 5 and all(load_config(path).rollout.engine == "vllm" for path in shipped)
