"""Small generated picture puzzles with an exact answer: something to learn from on a laptop, offline.

One file a task (count, compare, ground, spatial, chart, grid, arith, text); scene.py and draw.py are what
they share; recipe.py makes the splits.
"""
