"""What a model that cannot be used raises."""

from __future__ import annotations


class ModelError(ValueError):
    """The model, or a setting about it, cannot be used. The message says what is wrong, where, and what to do."""
