"""Rewards become one update.

In: scored groups and packed micro-batches. Out: advantages, the objective, the DeepSpeed step, checkpoints, and what
an update reports of itself. May import model, losses, record, types, strict and distributed.
"""
