"""From a .rec to a batch on the device, and from a folder of faces to a .rec."""

from partialfc.data.dataset import RecordDataset

__all__ = ["RecordDataset"]
