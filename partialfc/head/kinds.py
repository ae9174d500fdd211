"""Which parts of a head a loss wants."""

from typing import NamedTuple

from partialfc.head.active_rows import ActiveRows
from partialfc.head.binary import ShardedBinary
from partialfc.head.linear import ShardedLinear
from partialfc.head.losses import Binary, LinearLayer, Loss
from partialfc.head.plain_rows import PlainRows
from partialfc.head.sharded import ShardedLoss
from partialfc.head.softmax import ShardedSoftmax


class Kind(NamedTuple):
    """How a loss is computed."""

    sharded: type[ShardedLoss]
    rows: type[ActiveRows] | None  # that are worked on without kernels; None: any
    beside: int  # components of a row beside those of an embedding


def kind_of(loss: Loss, subcenters: int) -> Kind:
    """Of a loss over classes with so many centres each."""
    if isinstance(loss, LinearLayer):
        return Kind(ShardedLinear, PlainRows, loss.beside)
    sharded = ShardedBinary if isinstance(loss, Binary) else ShardedSoftmax
    return Kind(sharded, ActiveRows if subcenters > 1 else None, loss.beside)
