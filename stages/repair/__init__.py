"""Repair of a backdoored CLIP: one file a method (see method.py), all of them trained by one loop (see stages/training/objective.py)."""

from .method import Method

__all__ = ["Method"]
