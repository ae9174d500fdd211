"""Provenance of a checkpoint: recipe and data of its run, and the changes since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from partialfc import recipe
from partialfc.config import Config
from partialfc.conversion import convert
from partialfc.errors import InputError

_TENSOR_LAYOUT_VERSION = 3  # version of the names and shapes of a checkpoint's tensors
# Settings that do not affect any step: how a run computes, reports, starts and is stored.
_IRRELEVANT_KEYS = (
    "backbone.channels_last",
    "backbone.gradient_checkpointing",
    "backbone.compile",
    "backbone.cuda_graphs",
    "checkpoint",
    "data.path",  # packs are compared by content
    "data.reader",
    "data.synthetic",
    "data.num_workers",
    "deterministic",
    "device",
    "evaluation",
    "head.kernels",
    "head.logits_budget",
    "head.memory",
    "head.sample_on",
    "init.backbone",
    "init.centers",
    "launch",
    "output",
    "log",
    "train.max_skipped_steps",
)


class Provenance(Struct, frozen=True):
    """Description of a run, stored in its checkpoints."""

    config: Config  # resolved: train.micro_batch_size is set
    num_classes: int
    num_samples: int
    pack: str  # fingerprint
    # Changes on resuming, oldest first: step, and one line per change.
    history: list[tuple[int, list[str]]] = []
    origin: str | None = None  # checkpoint.resume at the start of the run, if it was a path
    layout: int = _TENSOR_LAYOUT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return the description in JSON types, as stored in checkpoints."""
        about: dict[str, Any] = msgspec.to_builtins(self)
        return about

    def to_yaml(self) -> str:
        """Return the recipe as YAML with all settings, preceded by the history of changes."""
        lines = [f"# changed after step {step}: {one}" for step, changed in self.history for one in changed]
        return "\n".join([*lines, recipe.dump(self.config)])


def parse_provenance(metadata: Mapping[str, Any], location: str) -> Provenance:
    """Parse the description in a checkpoint.

    Returns:
        Description of the run.

    Raises:
        InputError: If another version wrote it; the message starts with `location`.
    """
    if metadata.get("layout") != _TENSOR_LAYOUT_VERSION:
        raise InputError(f"{location}: written by another version; choose another `output`")
    found: Provenance = convert(dict(metadata), Provenance, location)
    return found


def diff_provenance(old: Provenance, new: Provenance) -> list[str]:
    """Return one line per difference that affects the steps of a run."""
    lines = diff_configs(old.config, new.config)
    lines += [
        f"{name} {getattr(old, name)} -> {getattr(new, name)}"
        for name in ("num_classes", "num_samples")
        if getattr(old, name) != getattr(new, name)
    ]
    if old.pack != new.pack:
        folder = Path(new.config.data.path).absolute()
        lines.append(f"the files of the pack {folder} (fingerprint {old.pack[:12]} -> {new.pack[:12]})")
    return lines


def diff_configs(old_config: Config, new_config: Config) -> list[str]:
    """Return one line per setting that differs and affects the steps of a run."""
    old, new = _relevant_settings(old_config), _relevant_settings(new_config)
    return [
        f"{key} {_format_value(old, key)} -> {_format_value(new, key)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def require_unchanged(checkpoint: Path, old: Provenance, new: Provenance, *, allowed: bool) -> list[str]:
    """Return the differences from a checkpoint's description.

    Raises:
        InputError: If there are any and none are allowed.
    """
    changed = diff_provenance(old, new)
    if changed and not allowed:
        raise InputError(
            f"checkpoint {checkpoint}: written with a different config: {'; '.join(changed)}; restore the config, "
            "choose another `output`, or set checkpoint.on_config_change=allow"
        )
    return changed


def flatten_config(config: Config) -> dict[str, str | int | float | bool]:
    """Return every setting by its key; None and lists as text."""
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
