"""A judge model behind the reward `judge`: prompt, client, cache, canaries, settings.

In: question, gold and answer. Out: a verdict, or why there is none. May import rewards.base.
"""
