"""The command line, one file a family of commands. In: arguments. Out: an exit status, and errors as one line each.

May import everything; nothing imports it but `python -m sapo_vl`.
"""
