"""What the keys of AdaDistill's config mean, and those that the origin of this project added to them.

Source: the configuration files of both repositories; constants that their training scripts do not read from it are
marked as fixed.
"""

from __future__ import annotations

import posixpath
from typing import Final

from adadistill.core.config_import.recipe_draft import RecipeDraft
from adadistill.core.config_import.step_rule import StepRule
from adadistill.core.teachers.cvlface import SHORT_NAMES

_SCRIPT: Final = "fixed in the training script"
_HEADS: Final = {"ArcFace": "arcface", "CosFace": "cosface", "AdaFace": "adaface"}
_STUDENTS: Final = ("mobilefacenet", "iresnet18", "iresnet34", "iresnet50", "iresnet100")
_TEACHERS: Final = ("iresnet18", "iresnet34", "iresnet50", "iresnet100")
_GEOMETRY_DEFAULTS: Final = {"geom_margin_w": 0.2, "geom_margin_k": 1.0, "geom_margin_warmup_epoch": 0}
_LARGE: Final = (("ijb", "evaluation.ijb"), ("tinyface", "evaluation.tinyface"))

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
    "sample": "images of each identity; the records say it",
    "eval_step": "evaluation is every so many epochs: evaluation.every_epochs",
    "pretrained_teacher_header_path": "only frozen centres would read it; these are adaptive",
    "teacher_cache": "downloads are kept where Hugging Face's HF_HUB_CACHE says",
    "run_eval_at_start": "adadistill evaluate scores a network without training it",
    **dict.fromkeys(
        ("ijb_batch_size", "ijb_num_workers", "tinyface_batch_size", "tinyface_num_workers"), "speed alone"
    ),
    **dict.fromkeys(("geom_margin_mask", "geom_margin_baseline"), "its script ignores it with the adaptive margin"),
}


def fill_from_adadistill(draft: RecipeDraft, *, devices: int, origin: bool) -> None:
    """Say what every key that is known becomes.

    Args:
        devices: GPUs that share a step.
        origin: whether it is the origin's config, whose script warms up by `warmup_epoch`.
    """
    _data(draft, devices)
    _teacher(draft)
    _student(draft)
    _head(draft)
    _geometry(draft)
    _optimiser(draft, origin=origin)
    _evaluation(draft)
    draft.copy("seed", "seed", draft.whole("seed"))
    draft.harmless(_HARMLESS)


def _data(draft: RecipeDraft, devices: int) -> None:
    in_folders = draft.peek("db_file_format") == "folder"
    source = "data_path" if in_folders else "rec"
    path = draft.text(source)
    if path is None:
        draft.obstacle(source, "where the training images are must be said")
    else:
        path = posixpath.normpath(path)
        draft.take(source, {"data.records": path if in_folders else posixpath.join(path, "train.rec")})
    draft.harmless({"rec": "its images are read from data_path", "data_path": "its images are read from rec"})
    batch = draft.whole("batch_size")
    if batch is None:
        draft.obstacle("batch_size", "the images of a step must be said")
    else:
        draft.take(
            "batch_size", {"data.global_batch_size": batch * devices}, f"{batch} a GPU, {devices} GPU(s): see --devices"
        )


def _teacher(draft: RecipeDraft) -> None:
    teacher, repository = draft.text("teacher"), draft.text("teacher_repo_id")
    if teacher is not None and teacher in SHORT_NAMES:
        if repository is not None and repository != SHORT_NAMES[teacher]:
            draft.take("teacher_repo_id", {"teacher.cvlface": repository}, "it goes before `teacher`")
            draft.harmless({"teacher": "teacher_repo_id says which network"})
        else:
            draft.take("teacher", {"teacher.cvlface": teacher})
            draft.harmless({"teacher_repo_id": "what `teacher` means anyway"})
        draft.harmless({"pretrained_teacher_path": "the teacher comes from the Hub"})
        return
    path = draft.text("pretrained_teacher_path")
    if teacher not in _TEACHERS or path is None:
        draft.obstacle("teacher", f"known are {', '.join((*SHORT_NAMES, *_TEACHERS))}, the last with their weights")
        return
    draft.take("teacher", {"teacher.arch": teacher})
    draft.take("pretrained_teacher_path", {"teacher.weights": posixpath.normpath(path)})
    draft.harmless({"teacher_repo_id": "the teacher comes from a file"})


def _student(draft: RecipeDraft) -> None:
    network = draft.text("network")
    if network not in _STUDENTS:
        draft.obstacle("network", f"known are {', '.join(_STUDENTS)}")
    else:
        draft.take("network", {"student.arch": network})
    draft.need("embedding_size", "student.embedding_dim", draft.whole("embedding_size"))
    if draft.peek("SE") is True and network is not None and network.startswith("iresnet"):
        draft.take("SE", {"student.se": True})
    elif draft.peek("SE"):
        draft.refuse("SE", f"squeeze-and-excitation is an option of iresnet networks, and this is {network}")
    draft.harmless({"SE": "off, as student.se is"})


def _head(draft: RecipeDraft) -> None:
    loss = draft.text("loss")
    if loss is None or loss not in _HEADS:
        draft.obstacle("loss", f"known are {', '.join(_HEADS)}")
        return
    draft.take("loss", {"head.kind": _HEADS[loss]})
    draft.need("m", "head.margin", draft.number("m"))
    draft.need("s", "head.logit_scale", draft.number("s"))
    if loss == "AdaFace":
        draft.need("h", "head.quality_concentration", draft.number("h"))
        draft.need("t_alpha", "head.norm_momentum", draft.number("t_alpha"))
    draft.harmless({"h": "only AdaFace reads it", "t_alpha": "only AdaFace reads it"})
    draft.fixed("centres.kind", "adaptive", "the method")
    key = "adaptive_weighted_alpha" if "adaptive_weighted_alpha" in draft else "adaptive_alpha"
    weighted = draft.flag(key)
    draft.need(key, "centres.momentum", None if weighted is None else "weighted" if weighted else "unweighted")
    draft.harmless({"adaptive_alpha": "adaptive_weighted_alpha is what the loss reads"})


def _geometry(draft: RecipeDraft) -> None:
    names = {
        "geom_margin_w": "geometry_margin.weight",
        "geom_margin_k": "geometry_margin.scale",
        "geom_margin_warmup_epoch": "geometry_margin.warmup_epochs",
    }
    used = draft.flag("use_geom_margin")
    if used and draft.peek("loss") != "AdaFace":
        draft.leave("use_geom_margin", "only the AdaFace head has a geometry margin")
    elif used:
        draft.take("use_geom_margin", {"geometry_margin.mode": "adaptive"})
        for key, name in names.items():
            draft.copy(key, name, draft.number(key))
            draft.fixed(name, _GEOMETRY_DEFAULTS[key], "the default of its training script")
    elif used is not None:
        draft.take("use_geom_margin", {"geometry_margin.mode": "off"})
    draft.harmless(dict.fromkeys(names, "the geometry margin is off"))


def _optimiser(draft: RecipeDraft, *, origin: bool) -> None:
    draft.need("lr", "optim.lr", draft.number("lr"))
    draft.fixed("optim.lr_batch_size", 512, f"{_SCRIPT}: the rate is scaled by images of a step / 512")
    draft.need("momentum", "optim.momentum", draft.number("momentum"))
    draft.need("weight_decay", "optim.weight_decay", draft.number("weight_decay"))
    draft.fixed("optim.clip_norm", 5.0, _SCRIPT)
    epochs, warmup = draft.epochs(), draft.number("warmup_epoch")
    if take_step_rule(draft, epochs) and not origin:
        draft.harmless({"warmup_epoch": "its training script warms up by lr_func alone"})
    if "warmup_epoch" not in draft.fates:
        draft.copy("warmup_epoch", "optim.warmup_epochs", None if warmup is None else max(0, warmup))


def take_step_rule(draft: RecipeDraft, epochs: int) -> bool:
    """The schedule that `lr_func` is, false and an obstacle where it is none."""
    rule = draft.peek("lr_func")
    if not isinstance(rule, StepRule):
        draft.obstacle("lr_func", "the rate schedule must be read from it, and it is none that could be")
        return False
    kept = [epoch for epoch in rule.milestones if 0 < epoch < epochs]
    values = {"optim.milestones": kept, "optim.gamma": rule.gamma}
    why = "epochs from 0, at whose start the rate drops" if kept else "no drop inside the training"
    if rule.warmup_epochs:
        values["optim.warmup_epochs"] = rule.warmup_epochs
        why += "; its warm-up rises by epochs there, by steps here"
    draft.take("lr_func", values, why)
    return True


def _evaluation(draft: RecipeDraft) -> None:
    draft.sets(draft.text("val_rec") or draft.text("rec"))
    draft.harmless({"val_rec": "the folder of evaluation.sets"})
    draft.copy("val_eval_every_n_epoch", "evaluation.every_epochs", draft.whole("val_eval_every_n_epoch") or None)
    any_large = False
    for name, recipe_key in _LARGE:
        root, targets = draft.text(f"{name}_root"), draft.items(f"{name}_targets", str, "texts")
        if draft.peek(f"eval_{name}") and root is not None and targets is not None:
            any_large = True
            folders = [posixpath.join(posixpath.normpath(root), target) for target in targets]
            draft.take(f"{name}_targets", {recipe_key: folders})
            draft.harmless({f"eval_{name}": "on", f"{name}_root": f"the folder of {recipe_key}"})
        else:
            off = f"evaluation on {name} is off"
            draft.harmless(dict.fromkeys((f"eval_{name}", f"{name}_root", f"{name}_targets"), off))
        if draft.peek(f"{name}_flip") is False:
            draft.leave(f"{name}_flip", "embeddings are always fused with those of mirrored images, as published")
        draft.harmless({f"{name}_flip": "always so here"})
    if any_large:
        cadence = draft.whole("eval_every_n_epoch") or None
        draft.copy("eval_every_n_epoch", "evaluation.large_every_epochs", cadence)
    draft.harmless({"eval_every_n_epoch": "evaluation on ijb and tinyface is off"})
