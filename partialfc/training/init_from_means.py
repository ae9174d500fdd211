"""Initialization of the centers of new identities by the mean embeddings of their images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from partialfc.config import Config
from partialfc.data import RecordDataset, images
from partialfc.data.images import ImageArray
from partialfc.errors import InputError
from partialfc.evaluation.embed import embed_sets
from partialfc.head.kernels.torch_centers import CENTERS
from partialfc.runtime import comm
from partialfc.runtime.progress import progress_bar
from partialfc.training.init_from_run import new_identity_mask
from partialfc.training.run import Run

_IMAGES = 1 << 13  # images per forward pass, over all ranks


@dataclass(frozen=True)
class _PackSubset:
    """Subset of a pack's images."""

    name: str
    dataset: RecordDataset
    samples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)

    def pixels(self, index: int, size: int) -> ImageArray:
        """Return the pixels of image `index` of the subset."""
        return images.resize(self.dataset[int(self.samples[index])][0], size)


def init_centers_from_means(run: Run) -> None:
    """Initialize the centers of new identities with the mean of the normalized embeddings of their images.

    The current backbone computes the embeddings. A mean gets the norm of the random center that it replaces.
    The result does not depend on the number of ranks. Centers of identities without images stay random.
    Memory: float64 `[C, D]` for this rank's classes.

    Raises:
        InputError: As a CollectiveInputError, if an image cannot be read, or its embedding is not finite.
    """
    config, centers, owned = run.config, run.head.centers.tensors[CENTERS], run.head.centers.local_classes
    with comm.raise_on_all_ranks(run.dist_ctx):
        dataset, samples, labels = _images_of_new_identities(config)
    sums = torch.zeros(len(owned), centers.shape[1], dtype=torch.float64)
    starts = range(0, len(samples), _IMAGES)
    for start in progress_bar(starts, "means of new identities", enabled=run.dist_ctx.is_main):
        part = _PackSubset("new", dataset, samples[start : start + _IMAGES])
        embeddings = embed_sets(
            run.backbone,
            [part],
            run.dist_ctx,
            batch_size=config.evaluation.batch_size,
            autocast=run.optimizer.autocast(),
        )[part.name]
        unit = normalize(embeddings.cpu().double())
        own = labels[start : start + _IMAGES] - owned.start
        rows = np.flatnonzero((own >= 0) & (own < len(owned)))
        sums.index_add_(0, torch.from_numpy(own[rows]), unit[torch.from_numpy(rows)])
    with comm.raise_on_all_ranks(run.dist_ctx):
        if not sums.isfinite().all():
            raise InputError(f"init.centers.new: embeddings by {config.init.backbone} are not finite")
    found = sums.norm(dim=1) > 0
    rows_of = torch.nonzero(found).squeeze(1).to(centers.device)
    length = centers[rows_of].double().norm(dim=1, keepdim=True)
    centers[rows_of] = (normalize(sums[found]).to(centers.device) * length).to(centers)


def _images_of_new_identities(config: Config) -> tuple[RecordDataset, NDArray[np.int64], NDArray[np.int64]]:
    """Return the pack, and the images of new identities with their labels."""
    assert config.init.centers is not None
    dataset = RecordDataset(Path(config.data.path), reader=config.data.reader)
    new = new_identity_mask(config.init.centers, dataset.num_classes)
    labels = dataset.labels()
    samples = np.flatnonzero(new[labels])
    return dataset, samples, labels[samples]
