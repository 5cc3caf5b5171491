"""Processes that score, and are killed when they do not answer.

In: the name of a reward and its input. Out: its output, or why there is none. May import all rewards.
"""
