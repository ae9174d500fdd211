"""What stands in for an image that cannot be read."""

import numpy as np
import torch

from partialfc.config import AugmentConfig, DataConfig
from partialfc.data import loader
from partialfc.data.loader import BatchLoader, _AugmentedSamples, _copy_if_shared, _ReadFailure
from partialfc.data.sampler import ReadRequest, SampleOrder, SampleRef
from partialfc.errors import InputError
from partialfc.runtime import comm


class Damaged:
    """100 samples, of which some cannot be read."""

    def __init__(self, unreadable: set[int]) -> None:
        self._unreadable = unreadable

    def __len__(self) -> int:
        return 100

    def prefetch_hint(self, samples: np.ndarray) -> None:
        pass

    def __getitem__(self, sample: int) -> tuple[np.ndarray, int]:
        if sample in self._unreadable:
            raise InputError(f"sample {sample}: damaged")
        return np.full((2, 2, 3), sample, np.uint8), sample


def request(*places: SampleRef) -> ReadRequest:
    return ReadRequest(list(places), None)


def samples(unreadable: set[int], *, skip: bool) -> list:
    """Images, labels and the number of replaced ones, of parts of one sample each."""
    reading = _AugmentedSamples(Damaged(unreadable), AugmentConfig(flip=0.0), seed=5, skip=skip)
    return [_copy_if_shared(reading[request(SampleRef(0, sample, False))]) for sample in range(100)]


def test_what_a_worker_hands_over_stays_until_it_has_made_three_more(monkeypatch):
    monkeypatch.setattr(loader, "get_worker_info", object)
    reading = _AugmentedSamples(Damaged(set()), AugmentConfig(flip=0.0), seed=5, skip=False)
    parts = [reading[request(SampleRef(0, sample, False))][0] for sample in range(4)]
    assert [part.max().item() for part in parts] == [0, 1, 2, 3]
    assert reading[request(SampleRef(0, 4, False))][0].data_ptr() == parts[0].data_ptr()


def test_only_what_cannot_be_read_is_replaced_by_what_can():
    unreadable = set(range(40, 90))
    for sample, (pixels, label, _, replaced, _, damaged) in enumerate(samples(unreadable, skip=True)):
        assert replaced == (sample in unreadable) and (pixels == label).all()
        assert (2 * sample in damaged) == (sample in unreadable)
        assert label.item() not in unreadable and (replaced or label == sample)
    stand_ins = {label.item() for _, label, _, replaced, *_ in samples(unreadable, skip=True) if replaced}
    assert len(stand_ins) > 20


class Gradient:
    def __len__(self) -> int:
        return 64

    def prefetch_hint(self, samples: np.ndarray) -> None:
        pass

    def __getitem__(self, sample: int) -> tuple[np.ndarray, int]:
        return np.arange(sample, sample + 12, dtype=np.uint8).reshape(2, 2, 3), sample


def epochs(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of two epochs of one batch each."""
    dist_ctx = comm.create_dist_context(torch.device(device))
    loader = BatchLoader(
        Gradient(),
        SampleOrder(5, 64, 64),
        DataConfig(path="", num_workers=0),
        AugmentConfig(flip=0.5),
        dist_ctx,
    )
    return [(batch.images.cpu(), batch.labels) for batch in loader.batches(0, 2)]


def test_half_of_the_images_are_mirrored_others_in_each_epoch(ranks):
    choices = []
    for images, labels in ranks.run(1, epochs, "cpu")[0]:
        plain = torch.stack([torch.from_numpy(Gradient()[sample][0]) for sample in labels.tolist()])
        mirrored = (images != plain).flatten(1).any(1)
        assert torch.equal(images, torch.where(mirrored[:, None, None, None], plain.flip(2), plain))
        choices.append(set(labels[mirrored].tolist()))
    assert 16 < len(choices[0]) < 48 and choices[0] != choices[1]


def test_what_stands_in_for_an_image_brings_its_own_embedding():
    embeddings = np.arange(100, dtype=np.float32)[:, None]
    reading = _AugmentedSamples(Damaged({3}), AugmentConfig(), seed=5, skip=True, teacher=embeddings)
    part = reading[request(SampleRef(0, 3, False), SampleRef(0, 4, False))]
    assert part.teacher_embeddings[:, 0].tolist() == part.labels.tolist() and part.num_replaced == 1


def test_padding_stays_padding():
    reading = _AugmentedSamples(Damaged({3}), AugmentConfig(), seed=5, skip=True)
    _, labels, _, replaced, *_ = reading[request(SampleRef(0, 3, True), SampleRef(0, 4, False))]
    assert labels.tolist() == [-1, 4] and replaced == 1


def test_without_skip_and_where_nothing_can_be_read_the_first_error_is_told():
    assert samples({7}, skip=False)[7] == _ReadFailure("sample 7: damaged")
    assert samples(set(range(100)), skip=True)[7] == _ReadFailure("sample 7: damaged")
