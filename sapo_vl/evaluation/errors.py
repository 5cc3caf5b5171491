"""The one error of this package that is the input's."""


class EvaluationError(ValueError):
    """An evaluation that cannot be run, gone on with, or compared. The message says why and what to do."""
