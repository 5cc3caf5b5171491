"""Responses become rewards.

In: groups of rollouts whose rewards are named by task or problem. Out: the same groups with a score, its parts and a
status on every response, and counts of what could not be scored. May import rewards, types, strict and distributed.
"""
