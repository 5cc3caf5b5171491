"""How good a model is.

In: a session, and held-out problems of a data set (accuracy, held_out, difficulty) or a benchmark (the other modules).
Out: figures with intervals, and a record of every response. May import every wing below the spine's loops, and the
sections of a config, but not the config.
"""
