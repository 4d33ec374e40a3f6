"""What every section of a recipe is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: frozen, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def is_default(self, field: str) -> bool:
        """Whether a field that has a default has this value. A recipe that was written out holds all defaults."""
        return getattr(self, field) == type(self).model_fields[field].default
