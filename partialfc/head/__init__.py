"""The classifier split across ranks."""

from partialfc.head.partial_fc import Observation, PartialFC
from partialfc.head.sampling import Work

__all__ = ["Observation", "PartialFC", "Work"]
