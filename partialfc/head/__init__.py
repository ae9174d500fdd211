"""The classifier split across ranks."""

from partialfc.head.partial_fc import Observation, PartialFC
from partialfc.head.step import HeadStep

__all__ = ["HeadStep", "Observation", "PartialFC"]
