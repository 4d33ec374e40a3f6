"""The base class of all sections of a recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: frozen, and refusing keys that it does not know, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    def is_default(self, field: str) -> bool:
        """Whether a field has its default value; it may have been set to it, as in a recipe that raykd wrote."""
        return getattr(self, field) == type(self).model_fields[field].default
