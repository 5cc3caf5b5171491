"""Rollouts from vLLM. Nothing here imports vllm before an engine is opened."""
