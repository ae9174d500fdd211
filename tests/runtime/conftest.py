from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from partialfc.runtime import comm

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[comm.DistContext]:
    """One rank, this process."""
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield comm.create_dist_context(CPU)
    dist.destroy_process_group()
