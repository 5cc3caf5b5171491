"""Several machines: the files that start a run on them.

In: a config, and how many machines of what kind. Out: texts of files, by name, for a scheduler or a shell. May import
config, rollout (where its servers listen) and strict.
"""
