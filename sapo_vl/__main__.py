"""`python -m sapo_vl` is the `sapo-vl` command. Worker processes of rewards do not import a package's `__main__` again."""

from sapo_vl.cli import main

raise SystemExit(main())
