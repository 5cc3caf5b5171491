"""Rows become problems, and problems become batches of prompts.

In: a data set folder (or, for recipes and benchmarks, rows and pictures of others). Out: `Problem`s, and this rank's
share of each batch as `Prompt`s with exact task quotas, bad rows named and counted. May import types, strict,
distributed, and the chat of `model`, in `feed` alone.
"""
