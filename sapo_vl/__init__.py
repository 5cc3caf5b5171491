"""Reinforcement learning of vision-language models with SAPO (arXiv 2511.20347)."""

__version__ = "0.1.0"
