"""Programs of a model, run where they can do no harm (bubblewrap, seccomp, limits).

In: source text, standard input, limits. Out: what was printed, and how it ended. May import rewards.base.
"""
