"""A measurement of a benchmark."""

from typing import Any

MeasurementRow = dict[str, Any]  # settings and measured values; times in ms, memory in bytes
