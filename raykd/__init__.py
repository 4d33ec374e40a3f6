"""raykd: a distillation engine on Ray."""

__version__ = "0.1.0"
