"""Reading an answer: where it stands in a response, and what number, formula, quantity or block it says.

In: text. Out: plain values, or None. May import rewards.base.
"""
