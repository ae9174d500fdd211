"""Identities that two packs share are named, be their images encoded anew, resized or mirrored."""

import numpy as np
from helpers.faces import face

from partialfc.data import images
from partialfc.data.packs.pack_writer import write_pack
from partialfc.data.packs.shared_images import find_shared_identities

BLACK = images.encode_jpeg(np.zeros((32, 32, 3), np.uint8), 95)


def test_images_of_the_same_bytes(tmp_path):
    write_pack(tmp_path / "one", [(0, face(7, 0)), (0, face(7, 1)), (1, face(8, 0))], size=32)
    write_pack(
        tmp_path / "two", [(0, face(9, 0)), (4, face(7, 1)), (4, face(7, 0)), (4, face(17, 2))], size=32
    )
    assert find_shared_identities(tmp_path / "one", tmp_path / "two") == {(0, 4): 2}
    write_pack(tmp_path / "one", [(0, face(7, 0)), (1, face(8, 0)), (2, face(7, 0))], size=32)
    assert find_shared_identities(tmp_path / "one", tmp_path / "two") == {(0, 4): 1, (2, 4): 1}


def test_images_that_were_changed(tmp_path):
    encoded = images.decode(face(7, 0, 112))
    smaller = images.resize(images.decode(face(8, 0, 112)), 96)
    mirrored = np.ascontiguousarray(images.decode(face(9, 0, 112))[:, ::-1])
    write_pack(tmp_path / "one", [(it, face(it + 7, 0, 112)) for it in range(4)] + [(4, BLACK)], size=112)
    changed = [(it, images.encode_jpeg(face, 80)) for it, face in enumerate((encoded, smaller, mirrored))]
    write_pack(tmp_path / "two", [*changed, (3, face(20, 0, 112)), (3, BLACK)], size=112)
    assert find_shared_identities(tmp_path / "one", tmp_path / "two") == {(0, 0): 1, (1, 1): 1, (2, 2): 1}
