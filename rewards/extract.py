"""The answer of a response, under the path that rewards of your own import it from.

`settled` is for golds: it takes from them what `last_answer` takes from answers.
"""

from rewards.answers.extract import last_answer, settled

__all__ = ["last_answer", "settled"]
