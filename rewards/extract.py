"""The answer of a response, under the path that rewards of your own import it from."""

from rewards.answers.extract import last_answer

__all__ = ["last_answer"]
