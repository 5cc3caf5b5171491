"""A model folder becomes log-probs, and a trained model becomes a folder again.

In: a Hugging Face folder, prompts and responses. Out: micro-batches, the policy module with log-prob and entropy of
every response token, and folders that transformers and vLLM load. May import types and strict.
"""
