"""As many labels are wrong as was asked for, and nothing else of a pack changes."""

import sys

import numpy as np
import pytest

from experiments import flip_labels
from partialfc.data import RecordDataset


def test_a_share_of_the_labels_is_wrong(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["flip_labels", str(pack), str(tmp_path / "out"), "--share", "0.3"])
    flip_labels.main()
    before, after = RecordDataset(pack), RecordDataset(tmp_path / "out")
    assert len(after) == len(before) and after.num_classes == before.num_classes
    wrong = sum(before.label(image) != after.label(image) for image in range(len(before)))
    assert wrong == round(0.3 * len(before))
    assert all(before.encoded_image(image) == after.encoded_image(image) for image in range(len(before)))
    assert (tmp_path / "out/unseen.bin").read_bytes() == (pack / "unseen.bin").read_bytes()


def test_any_other_class_has_the_same_chance():
    labels = np.zeros(30_000, np.int64)
    counts = np.bincount(flip_labels.flip_labels(labels, 4, 1.0, 0), minlength=4)
    assert counts[0] == 0 and np.abs(counts[1:] - 10_000).max() < 400


@pytest.mark.parametrize("share", ["1.5", "-0.1", "nan"])
def test_a_share_that_is_none_is_refused(pack, tmp_path, monkeypatch, capsys, share):
    monkeypatch.setattr(sys, "argv", ["flip_labels", str(pack), str(tmp_path / "out"), f"--share={share}"])
    with pytest.raises(SystemExit) as ended:
        flip_labels.main()
    assert ended.value.code == 2 and "expected 0 to 1" in capsys.readouterr().err
