"""What is done to faces before they are trained on."""

import numpy as np
import pytest
from helpers.faces import face

from partialfc.config import AugmentConfig
from partialfc.data.augment import augment, augmentation_params
from partialfc.data.images import decode

NAMES = ("crop", "low_resolution", "blur", "photometric", "gray")
FACE = decode(face(3, 4, 112))


def versions(config: AugmentConfig, count: int = 400, epoch: int = 0) -> list[np.ndarray]:
    """Of one face, as if it were that of many samples."""
    draws = augmentation_params(np.arange(count), seed=5, epoch=epoch)
    return [augment(FACE, row, config) for row in draws]


@pytest.mark.parametrize("name", NAMES)
def test_each_change_happens_as_often_as_the_recipe_says_and_differs_each_time(name):
    assert all(np.array_equal(made, FACE) for made in versions(AugmentConfig()))
    made = versions(AugmentConfig(**{name: 0.3}))
    assert all(it.shape == FACE.shape and it.dtype == np.uint8 for it in made)
    different = [it.tobytes() for it in made if not np.array_equal(it, FACE)]
    assert 90 < len(different) < 150
    assert len(set(different)) == 1 if name == "gray" else len(set(different)) > 40


def test_the_draws_are_those_of_seed_epoch_and_sample():
    samples = np.array([7, 3, 8])
    whole = augmentation_params(np.arange(10), seed=5, epoch=1)
    assert np.array_equal(augmentation_params(samples, seed=5, epoch=1), whole[samples])
    assert not np.isin(augmentation_params(samples, seed=5, epoch=2), whole).any()
    assert not np.isin(augmentation_params(samples, seed=6, epoch=1), whole).any()
    assert len(np.unique(whole)) == whole.size


def detail(pixels: np.ndarray) -> float:
    return np.abs(np.diff(pixels.astype(float), axis=1)).mean()


def test_what_each_change_does():
    flat = [detail(it) for it in versions(AugmentConfig(blur=1.0), 50)]
    assert max(flat) < 0.9 * detail(FACE)
    shrunk = [detail(it) for it in versions(AugmentConfig(low_resolution=1.0), 50)]
    assert min(shrunk) < 0.3 * detail(FACE) < max(shrunk)
    smallest = np.zeros_like(augmentation_params(np.arange(1), seed=5, epoch=0)[0])
    pixel = augment(FACE, smallest, AugmentConfig(crop=1.0, min_crop_area=1e-9))
    assert pixel.shape == FACE.shape and (pixel == FACE[0, 0]).all()
    gray = versions(AugmentConfig(gray=1.0), 1)[0]
    assert np.array_equal(gray[..., 0], gray[..., 1]) and np.array_equal(gray[..., 0], gray[..., 2])
    means = [it.mean() / FACE.mean() for it in versions(AugmentConfig(photometric=1.0), 200)]
    assert 0.45 < min(means) < 0.7 and 1.3 < max(means) < 1.6


@pytest.mark.parametrize("least", [0.2, 0.7])
def test_a_crop_is_a_part_of_the_image_enlarged(least):
    rows, columns = np.mgrid[:112, :112].astype(np.uint8)
    grid = np.stack([rows, columns, rows], -1)  # each pixel says where it comes from
    shares = []
    for draws in augmentation_params(np.arange(200), seed=5, epoch=0):
        made = augment(grid, draws, AugmentConfig(crop=1.0, min_crop_area=least)).astype(int)
        spans = [made[..., axis].max() - made[..., axis].min() + 1 for axis in (0, 1)]
        shares.append(spans[0] * spans[1] / 112**2)
        assert (np.diff(made[..., 0], axis=0) >= 0).all() and (np.diff(made[..., 1], axis=1) >= 0).all()
    assert least - 0.02 < min(shares) < least + 0.05 and 0.95 < max(shares) <= 1.0
