"""The paper's experiments: in come an experiment's config and a folder, out go runs of `sapo-vl train` side by side
(arms.py says which, schedule.py runs them), their numbers as JSON lines (collect.py), figures and one report.md.

It starts runs as processes of their own and reads what they leave in their folders. It may import the config, the
losses, and what reads and sums up results: record, the statistics of evaluation and of sequences. Nothing imports it
but the command line.
"""
