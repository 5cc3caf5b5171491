"""`python -m sapo_vl` is the `sapo-vl` command.

The ranks are started this way: worker processes of rewards import the main module again, but not a `__main__`.
"""

from sapo_vl.commands.cli import main

raise SystemExit(main())
