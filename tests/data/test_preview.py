"""A few identities of a pack, to be looked at."""

from helpers.faces import write_pack

from partialfc.data import RecordDataset
from partialfc.data.preview import sample_identities


def test_up_to_so_many_images_of_so_many_identities(tmp_path):
    write_pack(tmp_path, 6, 4)
    found = sample_identities(RecordDataset(tmp_path, 16), num_identities=3, images_per_identity=2)
    assert [name for _, name in found] == ["0", "0", "1", "1", "2", "2"]
    assert {face.shape for face, _ in found} == {(16, 16, 3)}


def test_what_cannot_be_read_is_left_out(tmp_path):
    write_pack(tmp_path, 6, 4)
    dataset = RecordDataset(tmp_path, 16)
    records = (tmp_path / "train.rec").read_bytes()
    first, *images = records.split(b"\xff\xd8\xff")
    kept = [b"\xff\xd8\xff" + it for it in images[:8]] + [b"\0\0\0" + it for it in images[8:]]
    (tmp_path / "train.rec").write_bytes(b"".join([first, *kept]))
    assert [name for _, name in sample_identities(dataset)] == ["0"] * 4 + ["1"] * 4
