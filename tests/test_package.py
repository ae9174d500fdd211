"""The package from Python: what a name brings with it, and what it needs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.faces import face, write_pack
from torch.utils.data import DataLoader

import partialfc

ROOT = Path(__file__).parents[1]

# Only what torch itself, numpy and msgspec bring may be imported.
ALONE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

BLOCKED = set("cv2 docstring_parser lmdb matplotlib msgpack onnx onnxruntime onnxscript rich safetensors tensorboard "
              "typer xxhash yaml".split())
sys.meta_path.insert(0, Missing())
"""

SNIPPET = """
import torch
import partialfc
from partialfc.config import ElasticArcFace, HeadConfig, SGD

margin = ElasticArcFace(order="paper", sigma=0.0175)
head = partialfc.PartialFC(100, 16, margin, config=HeadConfig(sample_rate=0.1), optim=SGD(), device="cpu")
for number in range(3):
    labels = torch.arange(8)
    step = head.prepare(labels, number)
    embeddings = torch.randn(8, 16, requires_grad=True)
    loss = head(embeddings, step)
    loss.backward()
    head.update(step, 0.1)
print(loss.item() > 0)
"""


def ran(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd="/", timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_head_needs_torch_numpy_and_msgspec_alone():
    assert ran(ALONE + SNIPPET) == "True\n"


def test_packing_and_what_a_rank_spawns_to_draw_faces_do_without_torch():
    """Importing it takes longer than most of what they do."""
    script = "import sys, partialfc.train, partialfc.doctor.__main__, partialfc.data.synthetic, partialfc.data.packs.pack_sources"
    assert ran(f"{script}; print('torch' in sys.modules)") == "False\n"


def test_a_command_without_its_libraries_says_which_extra_has_them():
    done = subprocess.run(
        [sys.executable, "-c", ALONE + "import runpy; runpy.run_module('partialfc', run_name='__main__')"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: missing package typer; install it with: pip install 'partialfc[train]'\n"


def test_an_extra_is_wanted_by_what_it_is_for_alone(tmp_path):
    """LMDB is one kind of source; photographs, folders of faces and embeddings want nothing of it."""
    for name in ("1", "2"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        (tmp_path / "faces" / name / "a.jpg").write_bytes(face(int(name), 0))
    blocked = (
        ALONE.partition("BLOCKED =")[0]
        + 'BLOCKED = {"lmdb", "msgpack"}\nsys.meta_path.insert(0, Missing())\n'
    )
    pack = f"pack_sources.pack_images([Path({str(tmp_path / 'faces')!r})], Path({str(tmp_path / 'pack')!r}), packing)"
    script = f"""
from pathlib import Path
import partialfc.data.alignment, partialfc.inference.embed_folder
from partialfc.data.packs import pack_sources
packing = pack_sources.PackOptions(112, 95, None, None)
print({pack})
try:
    pack_sources.pack_images([Path("x.lmdb")], Path("y"), packing)
except Exception as error:
    print(type(error).__name__)
"""
    (tmp_path / "x.lmdb").write_bytes(b"")
    script = script.replace('"x.lmdb"', repr(str(tmp_path / "x.lmdb")))
    assert ran(blocked + script).splitlines() == ["(2, 2)", "ModuleNotFoundError"]


def test_to_import_it_imports_nothing_that_is_large():
    script = "import sys, partialfc; print([it for it in ('torch', 'numpy', 'cv2', 'msgspec') if it in sys.modules])"
    assert ran(script) == "[]\n"


def test_to_use_a_network_imports_nothing_of_sharded_tensors():
    """Torch's module of them takes a second, which a command that reads weights does without."""
    script = "import sys, partialfc.inference.recognizer; print('torch.distributed.tensor' in sys.modules)"
    assert ran(script) == "False\n"


def test_what_it_names_is_there():
    assert {getattr(partialfc, name).__name__ for name in partialfc.__all__ if name != "__version__"} == {
        "PartialFC", "Recognizer", "RecordDataset", "load", "verify",
    }  # fmt: skip
    assert set(partialfc.__all__) <= set(dir(partialfc)) and partialfc.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = partialfc.nonsense
    assert Path(partialfc.__file__).with_name("py.typed").exists()


def test_verify_takes_lists():
    found = partialfc.verify([0.9] * 10 + [0.1] * 10, [True] * 10 + [False] * 10)
    assert found["accuracy"] == 1 and found["auc"] == 1 and found["threshold"] == 0.5


def halved(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[::2, ::2])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_takes_a_pack(tmp_path, workers):
    write_pack(tmp_path, 5, 4)
    whole = partialfc.RecordDataset(str(tmp_path), image_size=32)
    dataset = partialfc.RecordDataset(tmp_path, image_size=32, transform=halved)
    batches = list(DataLoader(dataset, batch_size=8, num_workers=workers))
    assert [tuple(images.shape) for images, _ in batches] == [(8, 16, 16, 3), (8, 16, 16, 3), (4, 16, 16, 3)]
    assert [int(label) for _, labels in batches for label in labels] == [whole[i][1] for i in range(20)]
    np.testing.assert_array_equal(batches[0][0][3].numpy(), halved(whole[3][0]))
