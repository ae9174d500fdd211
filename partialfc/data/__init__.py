"""Data pipeline: from records to batches on the device, and from folders of faces to records."""

from partialfc.data.dataset import RecordDataset

__all__ = ["RecordDataset"]
