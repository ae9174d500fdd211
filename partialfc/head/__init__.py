"""The classifier split across ranks."""

from partialfc.head.partial_fc import PartialFC
from partialfc.head.sampling import Work

__all__ = ["PartialFC", "Work"]
