"""Measuring a model: held-out problems of a data set (accuracy, held_out), and benchmarks (the other modules)."""
