"""Unpacking: the images of a pack as files in folders."""

from pathlib import Path

from partialfc.data import images
from partialfc.data.dataset import RecordDataset
from partialfc.data.packs.names import folders_of, read_names
from partialfc.runtime.files import atomic_write
from partialfc.runtime.progress import progress_bar


def unpack_pack(folder: Path, out_folder: Path, *, progress: bool = False) -> int:
    """Write each image, byte for byte, to out_folder/CLASS/KEY.jpg; return the number of images.

    CLASS is the name of the identity if the pack has a usable one, else its number. Existing files are kept;
    rerun the same call to resume.

    Returns:
        Number of images.

    Raises:
        InputError: If a record cannot be read.
    """
    dataset = RecordDataset(folder)
    key_digits = len(str(len(dataset)))
    folders = folders_of(read_names(folder), dataset.num_classes)
    for sample in progress_bar(range(len(dataset)), "unpacking", enabled=progress):
        content = dataset.encoded_image(sample)
        identity = out_folder / folders[dataset.label(sample)]
        path = identity / f"{dataset.key(sample):0{key_digits}d}{images.file_suffix(content)}"
        if not path.exists():
            identity.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
    return len(dataset)
