"""The classifier, split across ranks."""

from partialfc.head.partial_fc import PartialFC

__all__ = ["PartialFC"]
