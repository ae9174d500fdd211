"""Names of recipe keys and values in other trainers, for hints."""

# Key in another trainer, in any section: equivalent here.
KEY_HINTS = {
    "batch_size": "train.global_batch_size, over all ranks",
    "embedding_size": "backbone.embedding_size",
    "epoch": "train.length: 3 epochs",
    "epochs": "train.length: 3 epochs",
    "fp16": "optim.precision: float16",
    "frequent": "log.every",
    "gradient_acc": "train.micro_batch_size",
    "interclass_filtering_threshold": "head.interclass_threshold",
    "learning_rate": "optim.lr",
    "m": "loss.margin",
    "max_epoch": "train.length: 3 epochs",
    "max_epochs": "train.length: 3 epochs",
    "max_steps": "train.length",
    "network": "backbone.name: iresnet50",
    "num_epoch": "train.length: 3 epochs",
    "num_epochs": "train.length: 3 epochs",
    "num_workers": "data.num_workers",
    "optimizer": "optim.name: sgd",
    "pretrained": "init.backbone",
    "rec": "data.path",
    "s": "loss.scale",
    "steps": "train.length",
    "verbose": "evaluation.every",
    "warmup_epoch": "schedule.warmup: 2 epochs",
    "warmup_epochs": "schedule.warmup: 2 epochs",
}

# Value of a key with few values: equivalent here.
VALUE_HINTS = {
    "mbf": "mobilefacenet",
    "mbf_large": "mobilefacenet_large",
    **{
        f"{before}{layers}": f"iresnet{layers}"
        for layers in (18, 34, 50, 100, 200, 2060)
        for before in ("r", "ir", "ir_", "ir-", "resnet", "iresnet_")
    },
    "elasticface": "elastic_arcface",
    "elastic_arc": "elastic_arcface",
    "elastic_cos": "elastic_cosface",
    "am_softmax": "cosface",
    "amsoftmax": "cosface",
    "sphereface": "combined",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "half": "float16",
}
