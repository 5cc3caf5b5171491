"""The base of every config class: typed, immutable, and closed to keys it does not know."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A config section. An unknown key or a wrong type is an error when the file is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
