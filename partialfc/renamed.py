"""Keys and values of recipes that were renamed in version 0.3; they are refused with their new name."""

SINCE = "0.3"

SECTIONS = {"margin": "loss", "report": "log"}

KEYS = {
    "augment.crop_area": "augment.min_crop_area",
    "augment.grey": "augment.gray",  # codespell:ignore grey
    "backbone.arguments": "backbone.kwargs",
    "backbone.checkpointing": "backbone.gradient_checkpointing",
    "backbone.drop_path": "backbone.drop_path_rate",
    "backbone.embedding": "backbone.embedding_size",
    "backbone.mask": "backbone.mask_ratio",
    "backbone.patch": "backbone.patch_size",
    "checkpoint.changes": "checkpoint.on_config_change",
    "data.workers": "data.num_workers",
    "distillation.embeddings": "distillation.teacher_embeddings",
    "distillation.regression": "distillation.cosine_weight",
    "evaluation.batch": "evaluation.batch_size",
    "head.centers": "head.centers_dtype",
    "head.correction": "head.logit_correction",
    "head.hard_refresh": "head.hard_refresh_steps",
    "head.hard_share": "head.hard_fraction",
    "head.moments": "head.optim_state_dtype",
    "head.products": "head.matmul_precision",
    "init.freeze": "init.freeze_backbone",
    "launch.requeues": "launch.max_requeues",
    "launch.restarts": "launch.max_restarts",
    "launch.timeout": "launch.step_timeout",
    "log.histograms": "log.histograms_every",
    "loss.margins": "loss.margin_range",
    "loss.norms": "loss.norm_range",
    "loss.own": "loss.positive_weight",
    "loss.rate": "loss.ema_rate",
    "loss.weight": "loss.norm_penalty_weight (magface), loss.negative_weight (uniface) or loss.loss_weight (sphereface2)",
    "optim.clip": "optim.max_grad_norm",
    "optim.decayed": "optim.weight_decay_on",
    "optim.ema": "optim.ema_decay",
    "optim.kind": "optim.optimizer_class",
    "optim.options": "optim.kwargs",
    "schedule.at": "schedule.milestones",
    "schedule.factor": "schedule.gamma",
    "train.batch": "train.global_batch_size",
    "train.max_skipped": "train.max_skipped_steps",
    "train.micro_batch": "train.micro_batch_size",
}

REMOVED = {"head.folder": "removed with head.memory: file; use head.memory: host"}

VALUES = {
    "checkpoint.on_config_change": {"refuse": "fail"},
    "head.logit_correction": {"log_rate": "log_q"},
    "head.memory": {"file": "host"},
    "init.centers.new": {"drawn": "random"},
    "optim.precision": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"},
    "schedule.name": {"step": "multistep"},
}


def renamed_key(key: str, first_key: str | None) -> str | None:
    """Return the message for an unknown key that had this name before, or None.

    Args:
        key: Dotted key, such as `train.batch`, or a section, such as `margin`.
        first_key: First key of the section in the recipe, if `key` is a section.
    """
    section, _, name = key.partition(".")
    if section in SECTIONS:
        name = name or first_key or ""
        new = f"{SECTIONS[section]}.{name}".rstrip(".")
        return f"{f'{section}.{name}'.rstrip('.')}: unknown key; since {SINCE} it is {KEYS.get(new, new)}"
    if key in REMOVED:
        return f"{key}: {REMOVED[key]}"
    # Exported weights describe their backbone without its section.
    known = KEYS.get(key) or KEYS.get(f"backbone.{key}")
    return None if known is None else f"{key}: unknown key; since {SINCE} it is {known}"


def renamed_value(key: str, value: object) -> str | None:
    """Return the message for a value that had this name before, or None."""
    new = VALUES.get(key, {}).get(str(value))
    return None if new is None else f"{key}: unknown value {value}; since {SINCE} it is {new}"
