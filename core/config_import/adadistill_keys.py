"""What the keys of AdaDistill's config mean, and those that the origin of this project added to them.

Source: the configuration files of both repositories; constants that their training scripts do not read from it are
marked as fixed.
"""

from __future__ import annotations

import posixpath
from typing import Final

from adadistill.core.config_import.account import NEEDED, Account, Copied, Kind, Only, Value
from adadistill.core.config_import.python_literals import StepRule
from adadistill.core.teachers.cvlface import SHORT_NAMES

_HEADS: Final = {"ArcFace": "arcface", "CosFace": "cosface", "AdaFace": "adaface"}
_STUDENTS: Final = ("mobilefacenet", "iresnet18", "iresnet34", "iresnet50", "iresnet100")
_TEACHERS: Final = ("iresnet18", "iresnet34", "iresnet50", "iresnet100")
_SCRIPT: Final = "fixed in the training script"
_DEFAULT: Final = "the default of its training script"

_COPIED: Final = (
    Copied("seed", "seed", Kind.WHOLE),
    Copied("embedding_size", "student.embedding_dim", Kind.WHOLE, NEEDED),
    Copied("m", "head.margin", Kind.NUMBER, NEEDED),
    Copied("s", "head.logit_scale", Kind.NUMBER, NEEDED),
    Copied("num_epoch", "optim.epochs", Kind.WHOLE, NEEDED),
    Copied("lr", "optim.lr", Kind.NUMBER, NEEDED),
    Copied("momentum", "optim.momentum", Kind.NUMBER, NEEDED),
    Copied("weight_decay", "optim.weight_decay", Kind.NUMBER, NEEDED),
    Copied("val_eval_every_n_epoch", "evaluation.every_epochs", Kind.COUNT),
)
_OF_ADAFACE: Final = (
    Copied("h", "head.quality_concentration", Kind.NUMBER, NEEDED),
    Copied("t_alpha", "head.norm_momentum", Kind.NUMBER, NEEDED),
)
_OF_GEOMETRY: Final = (
    Copied("geom_margin_w", "geometry_margin.weight", Kind.NUMBER, Value(0.2, _DEFAULT)),
    Copied("geom_margin_k", "geometry_margin.scale", Kind.NUMBER, Value(1.0, _DEFAULT)),
    Copied("geom_margin_warmup_epoch", "geometry_margin.warmup_epochs", Kind.NUMBER, Value(0, _DEFAULT)),
)

LOGGING: Final = dict.fromkeys(
    (
        *("output", "log_dir", "logdir", "save_dir", "prefix", "work_dir", "run_name", "notes", "comment", "project"),
        *("frequent", "verbose", "log_freq", "print_freq", "save_freq", "save_all_states", "save_artifacts"),
        *("tensorboard", "using_wandb", "wandb_key", "wandb_entity", "wandb_project", "wandb_log_all", "wandb_resume"),
        *("suffix_run_name", "num_workers", "workers", "pin_memory", "gpus", "gpu_id", "device", "local_rank"),
        *("world_size", "dist_url", "dist_backend", "cudnn_benchmark", "resume", "global_step", "num_classes"),
        *("num_image", "warmup_step", "total_step", "decay_step"),
    ),
    "of logging, files or machines, or counted here",
)
"""Keys of any family that need no counterpart: what is counted in the records is among them."""

_HARMLESS: Final = LOGGING | {
    "dataset": "it chooses among the branches of the config, which was followed",
    "db_file_format": "the records say what they are",
    "rec": "its images are read from data_path",
    "data_path": "its images are read from rec",
    "sample": "images of each identity; the records say it",
    "teacher_repo_id": "`teacher`, or its file, says which network",
    "pretrained_teacher_path": "the teacher comes from the Hub",
    "pretrained_teacher_header_path": "only frozen centres would read it; these are adaptive",
    "teacher_cache": "downloads are kept where Hugging Face's HF_HUB_CACHE says",
    "adaptive_alpha": "adaptive_weighted_alpha is what the loss reads",
    "val_rec": "the folder of evaluation.sets",
    "eval_step": "evaluation is every so many epochs: evaluation.every_epochs",
    "eval_every_n_epoch": "evaluation on ijb and tinyface is off",
    "run_eval_at_start": "adadistill evaluate scores a network without training it",
    **dict.fromkeys(("h", "t_alpha"), "only AdaFace reads it"),
    **dict.fromkeys((row.key for row in _OF_GEOMETRY), "the geometry margin is off"),
    **dict.fromkeys(("ijb_batch_size", "ijb_num_workers"), "speed alone"),
    **dict.fromkeys(("tinyface_batch_size", "tinyface_num_workers"), "speed alone"),
    **dict.fromkeys(("geom_margin_mask", "geom_margin_baseline"), "its script ignores it with the adaptive margin"),
}


def fill_from_adadistill(account: Account, *, devices: int, origin: bool) -> None:
    """Say what every key that is known becomes.

    Args:
        devices: GPUs that share a step.
        origin: whether it is the origin's config, whose script warms up by `warmup_epoch`.
    """
    _data(account, devices)
    _teacher(account)
    _student(account)
    _head(account)
    account.copy(_COPIED)
    account.fixed({"optim.lr_batch_size": 512}, f"{_SCRIPT}: the rate is scaled by images of a step / 512")
    account.fixed({"optim.clip_norm": 5.0}, _SCRIPT)
    if take_step_rule(account) and not origin:
        account.harmless({"warmup_epoch": "its training script warms up by lr_func alone"})
    warmup = account.get("warmup_epoch", Kind.NUMBER)
    if warmup is not None and "warmup_epoch" not in account.fates:
        account.take("warmup_epoch", {"optim.warmup_epochs": max(0, warmup)})
    _evaluation(account)
    account.harmless(_HARMLESS)


def _data(account: Account, devices: int) -> None:
    in_folders = account.get("db_file_format") == "folder"
    source = "data_path" if in_folders else "rec"
    path = account.get(source, Kind.TEXT)
    if path is None:
        account.obstacle(source, "where the training images are must be said")
    else:
        path = posixpath.normpath(path)
        account.take(source, {"data.records": path if in_folders else posixpath.join(path, "train.rec")})
    batch = account.get("batch_size", Kind.WHOLE)
    if batch is None:
        account.obstacle("batch_size", "the images of a step must be said")
    else:
        why = f"{batch} a GPU, {devices} GPU(s): see --devices"
        account.take("batch_size", {"data.global_batch_size": batch * devices}, why)


def _teacher(account: Account) -> None:
    teacher, repository = account.get("teacher", Kind.TEXT), account.get("teacher_repo_id", Kind.TEXT)
    path = None if teacher in SHORT_NAMES else account.get("pretrained_teacher_path", Kind.TEXT)
    if teacher in SHORT_NAMES and repository not in (None, SHORT_NAMES[teacher]):
        account.take("teacher_repo_id", {"teacher.cvlface": repository}, "it goes before `teacher`")
        account.harmless({"teacher": "teacher_repo_id says which network"})
    elif teacher in SHORT_NAMES:
        account.take("teacher", {"teacher.cvlface": teacher})
    elif teacher in _TEACHERS and path is not None:
        account.take("teacher", {"teacher.arch": teacher})
        account.take("pretrained_teacher_path", {"teacher.weights": posixpath.normpath(path)})
    else:
        account.obstacle("teacher", f"known are {', '.join((*SHORT_NAMES, *_TEACHERS))}, the last with their weights")


def _student(account: Account) -> None:
    network = account.get("network", Kind.TEXT)
    if network in _STUDENTS:
        account.take("network", {"student.arch": network})
    else:
        account.obstacle("network", f"known are {', '.join(_STUDENTS)}")
    if account.get("SE") is True and str(network).startswith("iresnet"):
        account.take("SE", {"student.se": True})
    why = f"squeeze-and-excitation is an option of iresnet networks, and this is {network}"
    account.only({"SE": Only(False, "off, as student.se is", why)})


def _head(account: Account) -> None:
    loss = account.get("loss", Kind.TEXT)
    if loss in _HEADS:
        account.take("loss", {"head.kind": _HEADS[loss]})
    else:
        account.obstacle("loss", f"known are {', '.join(_HEADS)}")
    if loss == "AdaFace":
        account.copy(_OF_ADAFACE)
    account.fixed({"centres.kind": "adaptive"}, "the method")
    key = "adaptive_weighted_alpha" if "adaptive_weighted_alpha" in account else "adaptive_alpha"
    weighted = account.get(key, Kind.FLAG)
    if weighted is None:
        account.obstacle(key, NEEDED.source)
    else:
        account.take(key, {"centres.momentum": "weighted" if weighted else "unweighted"})
    geometry = account.get("use_geom_margin", Kind.FLAG)
    if geometry and loss != "AdaFace":
        account.leave("use_geom_margin", "only the AdaFace head has a geometry margin")
    elif geometry is not None:
        account.take("use_geom_margin", {"geometry_margin.mode": "adaptive" if geometry else "off"})
        account.copy(_OF_GEOMETRY if geometry else ())


def take_step_rule(account: Account) -> bool:
    """Take the schedule that `lr_func` is; false, and an obstacle, where it is none."""
    rule = account.get("lr_func")
    if not isinstance(rule, StepRule):
        account.obstacle("lr_func", "the rate schedule must be read from it, and it is none that could be")
        return False
    kept = [epoch for epoch in rule.milestones if 0 < epoch < (account.get("num_epoch", Kind.WHOLE) or 0)]
    values = {"optim.milestones": kept, "optim.gamma": rule.gamma}
    why = "epochs from 0, at whose start the rate drops" if kept else "no drop inside the training"
    if rule.warmup_epochs:
        values["optim.warmup_epochs"] = rule.warmup_epochs
        why += "; its warm-up rises by epochs there, by steps here"
    account.take("lr_func", values, why)
    return True


def _evaluation(account: Account) -> None:
    account.sets(account.get("val_rec", Kind.TEXT) or account.get("rec", Kind.TEXT))
    for name in ("ijb", "tinyface"):
        root, targets = account.get(f"{name}_root", Kind.TEXT), account.get(f"{name}_targets", Kind.TEXTS)
        if account.get(f"eval_{name}") and root is not None and targets is not None:
            folders = [posixpath.join(posixpath.normpath(root), target) for target in targets]
            account.take(f"{name}_targets", {f"evaluation.{name}": folders})
            account.harmless({f"eval_{name}": "on", f"{name}_root": f"the folder of evaluation.{name}"})
            account.copy([Copied("eval_every_n_epoch", "evaluation.large_every_epochs", Kind.COUNT)])
        off = f"evaluation on {name} is off"
        account.harmless(dict.fromkeys((f"eval_{name}", f"{name}_root", f"{name}_targets"), off))
        if account.get(f"{name}_flip") is False:
            account.leave(f"{name}_flip", "embeddings are always fused with those of mirrored images, as published")
        account.harmless({f"{name}_flip": "always so here"})
