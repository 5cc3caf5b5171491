"""What a run will take, before it is started: `sapo-vl plan`.

In: a run's config, the sizes of its model (from a config.json or a small table of published ones, built on the meta
device), a machine and the rates it is taken to reach. Out: bytes on a GPU and on a host for every phase, seconds, the
largest token budget and response that fit, the first phase that does not fit and the setting that mends it. Pure
functions over frozen data, units in the names. May import config, model, types and strict; never the training loop.

The memory model describes what the code does today, one function a phase: who changes how a phase works changes its
function. `bench/memory.py` holds it against real updates.
"""
