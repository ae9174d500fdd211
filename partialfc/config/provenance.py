"""Of which run a checkpoint is: its whole recipe and its data; and what of them has changed when it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from partialfc import recipe
from partialfc.config import Config
from partialfc.conversion import convert
from partialfc.errors import InputError

_TENSOR_LAYOUT_VERSION = 3  # of a checkpoint's tensors: their names and shapes
# Settings by which no step of a run depends: how it is computed and reported, where it begins and lies.
_IRRELEVANT_KEYS = (
    "backbone.channels_last",
    "backbone.gradient_checkpointing",
    "backbone.compile",
    "backbone.cuda_graphs",
    "checkpoint",
    "data.path",  # the pack is compared by its content
    "data.reader",
    "data.synthetic",
    "data.num_workers",
    "deterministic",
    "device",
    "evaluation",
    "head.kernels",
    "head.logits_budget",
    "head.memory",
    "init.backbone",
    "init.centers",
    "launch",
    "output",
    "log",
    "train.max_skipped_steps",
)


class Provenance(Struct, frozen=True):
    """What a checkpoint says of its run."""

    config: Config  # resolved: train.micro_batch_size is that of the run
    num_classes: int
    num_samples: int
    pack: str  # fingerprint
    # what was changed when the run went on, oldest first: after how many steps, and a line on each setting
    history: list[tuple[int, list[str]]] = []
    origin: str | None = None  # the checkpoint.resume that the run began with, where that is a path
    layout: int = _TENSOR_LAYOUT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """The same in JSON's types, as checkpoints keep it."""
        about: dict[str, Any] = msgspec.to_builtins(self)
        return about

    def to_yaml(self) -> str:
        """The recipe in YAML, every setting, below what was changed while the run was under way."""
        lines = [f"# changed after step {step}: {one}" for step, changed in self.history for one in changed]
        return "\n".join([*lines, recipe.dump(self.config)])


def parse_provenance(metadata: Mapping[str, Any], location: str) -> Provenance:
    """What a checkpoint says. InputError at `location` where another version wrote it."""
    if metadata.get("layout") != _TENSOR_LAYOUT_VERSION:
        raise InputError(f"{location}: of another version of the program; name another `output`")
    found: Provenance = convert(dict(metadata), Provenance, location)
    return found


def diff_provenance(old: Provenance, new: Provenance) -> list[str]:
    """A line on each thing that is not as it was, of those on which the steps of a run depend."""
    lines = diff_configs(old.config, new.config)
    lines += [
        f"{name} {getattr(old, name)} -> {getattr(new, name)}"
        for name in ("num_classes", "num_samples")
        if getattr(old, name) != getattr(new, name)
    ]
    if old.pack != new.pack:
        lines.append(f"the pack's fingerprint {old.pack[:12]} -> {new.pack[:12]}")
    return lines


def diff_configs(old_config: Config, new_config: Config) -> list[str]:
    """A line on each setting that is not as it was, of those on which the steps of a run depend."""
    old, new = _relevant_settings(old_config), _relevant_settings(new_config)
    return [
        f"{key} {_format_value(old, key)} -> {_format_value(new, key)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def require_unchanged(checkpoint: Path, old: Provenance, new: Provenance, *, allowed: bool) -> list[str]:
    """The changes since a checkpoint. InputError where there are any and none are allowed."""
    changed = diff_provenance(old, new)
    if changed and not allowed:
        raise InputError(
            f"checkpoint {checkpoint}: made with other settings: {'; '.join(changed)}; wanted the same, "
            "another `output`, or checkpoint.on_config_change=allow"
        )
    return changed


def flatten_config(config: Config) -> dict[str, str | int | float | bool]:
    """Every setting, by its key; what is unset or a list in words."""
    return {
        key: value if isinstance(value, str | int | float | bool) else str(value)
        for key, value in _flatten(msgspec.to_builtins(config)).items()
    }


def _relevant_settings(config: Config) -> dict[str, Any]:
    flat = _flatten(msgspec.to_builtins(config))
    return {
        key: value
        for key, value in flat.items()
        if not any(key == free or key.startswith(f"{free}.") for free in _IRRELEVANT_KEYS)
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _format_value(flat_config: Mapping[str, Any], key: str) -> str:
    return str(flat_config[key]) if key in flat_config else "(none)"
