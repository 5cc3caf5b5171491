"""What a run writes down and shows.

In: numbers and groups of a step. Out: metrics.jsonl, trackers, rollouts/, signs of trouble, the progress line, the
report with its plots.
May import types, strict, distributed, and the pictures of `data`.
"""
