"""Several machines: the files that start a run on them, and how they notice that one is lost.

In: a config, and how many machines of what kind; ranks that have met. Out: texts of files, by name, for a scheduler or
a shell; the end of a run that has lost a machine. May import config, lifeline, rollout (where its servers listen),
types, strict and distributed.
"""
