"""Names of the tensors of a backbone: prefixes of wrappers, and why weights do not fit."""

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from partialfc.errors import InputError

_MAX_LISTED = 5  # names per kind of mismatch
_COUNTER = "num_batches_tracked"  # of BatchNorm: does not affect results
# Families of networks, each with names that all of its members have.
_FAMILIES = {
    "an IR network of AdaFace or CVLface": ("input_layer.0.weight", "body.0.res_layer.0.weight"),
    "an iresnet of insightface": ("conv1.weight", "layer1.0.bn3.weight", "layer1.0.prelu.weight"),
    "a ResNet of torchvision or timm": ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn2.weight"),
    "a MobileFaceNet of insightface": ("layers.0.layers.0.weight", "features.layers.2.weight"),
    "a vision transformer": ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
}
_BLOCK = re.compile(r"([^\d.]\w*)\.(\d+)\.")  # "layer1.0."


def match_names(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: object
) -> dict[str, Tensor]:
    """Return the weights with the names of a backbone, without a wrapper's prefix and other parts of the wrapper.

    Wrappers are DistributedDataParallel (`module.`), torch.compile (`_orig_mod.`) or a module with the backbone.

    Args:
        own: Tensors of the backbone; may be on the meta device.
        weights: Tensors of a file.
        source: Name of the file, for the message.

    Raises:
        InputError: If tensors are missing, unexpected, or of other shapes or types; lists each kind.
    """
    needed = {name for name in own if not name.endswith(_COUNTER)}
    weights = strip_prefix(own, weights)
    misfits = _misfits(own, weights, needed)
    if any(misfits.values()):
        told = [f"{len(names)} {kind}: {_format_names(names)}" for kind, names in misfits.items() if names]
        raise InputError(
            f"{source}: weights of a different network; {'; '.join([*_explain(own, weights), *told])}"
        )
    return {name: weights.get(name, own[name]) for name in own}


def strip_prefix(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights, in their order, without the prefix whose removal gives most names of the backbone."""
    needed = {name for name in own if not name.endswith(_COUNTER)}
    return max(_without_prefixes(needed, weights), key=lambda it: len(needed & it.keys()))


def _without_prefixes(needed: set[str], weights: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Yield the weights, and those with each prefix that the first or longest name of the backbone has among them."""
    yield weights
    for anchor in {min(needed, default=""), max(needed, key=len, default="")}:
        for prefix in sorted({name[: -len(anchor)] for name in weights if name.endswith(f".{anchor}")}):
            yield {name[len(prefix) :]: it for name, it in weights.items() if name.startswith(prefix)}


def _misfits(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], needed: set[str]
) -> dict[str, set[str]]:
    """Return the names that do not fit, by the kind of misfit."""
    common = own.keys() & weights.keys()
    return {
        "missing": needed - weights.keys(),
        "surplus": weights.keys() - own.keys(),
        "of a different shape": {
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in common
            if own[name].shape != weights[name].shape
        },
        "of a different type": {
            f"{name} {str(weights[name].dtype).removeprefix('torch.')}"
            for name in common
            if own[name].is_floating_point() != weights[name].is_floating_point()
        },
    }


def _explain(own: Iterable[str], weights: Iterable[str]) -> list[str]:
    """Return why the names differ, if it is another family or depth."""
    found, expected = _family(weights), _family(own)
    if found is not None and found != expected:
        return [f"they are of {found}" + (f", expected {expected}" if expected else "")]
    blocks, own_blocks = _count_blocks(weights), _count_blocks(own)
    return [
        f"{blocks[name]} blocks in {name}, expected {count}"
        for name, count in own_blocks.items()
        if blocks.get(name, count) != count
    ]


def _family(names: Iterable[str]) -> str | None:
    ends = {
        ".".join(parts[place:]) for parts in (it.split(".") for it in names) for place in range(len(parts))
    }
    return next((family for family, signature in _FAMILIES.items() if ends.issuperset(signature)), None)


def _count_blocks(names: Iterable[str]) -> dict[str, int]:
    """Return the number of blocks of each sequence at the top of a network, such as `layer1`."""
    found: dict[str, set[str]] = {}
    for name in names:
        if block := _BLOCK.match(name):
            found.setdefault(block[1], set()).add(block[2])
    return {name: len(numbers) for name, numbers in found.items()}


def _format_names(names: set[str]) -> str:
    return ", ".join(sorted(names)[:_MAX_LISTED]) + (" ..." if len(names) > _MAX_LISTED else "")
