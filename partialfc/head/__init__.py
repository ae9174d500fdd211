"""The classifier split across ranks."""

from partialfc.head.partial_fc import PartialFC
from partialfc.head.step import HeadStep, Observation

__all__ = ["HeadStep", "Observation", "PartialFC"]
