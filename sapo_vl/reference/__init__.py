"""What every setting and every command means, taken from the code that has them.

In: the typed config, the parser of the command line. Out: text and Markdown (`sapo-vl explain`, docs/reference/). May
import the config and the registries it names.
"""
