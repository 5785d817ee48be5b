"""What the keys of insightface's arcface_torch configs mean. Keys that a config leaves out have the values of its base.

Source: its configuration files and training scripts. Since 2022 (`margin_list`) the rate is not scaled by the batch and
falls polynomially, and margins pass gradients straight through. In 2021 (`loss`, with `lr_func` or `decay_epoch`) it
was for 512 images and fell in steps, and gradients were exact. The classes are spread over the GPUs.
"""

from __future__ import annotations

import posixpath
from typing import Any, Final

from adadistill.core.config_import.adadistill_keys import LOGGING, take_step_rule
from adadistill.core.config_import.recipe_draft import RecipeDraft

_SCRIPT: Final = "fixed in the training script"
_BASE: Final = "insightface's base config"
_NETWORKS: Final = {
    **{f"r{depth}": f"iresnet{depth}" for depth in (18, 34, 50, 100, 200)},
    **{name: name for name in ("iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200", "mbf", "mbf_large")},
}
_MOMENTUM: Final = 0.9

INSIGHTFACE_LOSSES: Final = {"arcface": 0.5, "cosface": 0.4}
"""Heads of the scripts of 2021, with the margin that is fixed there."""


def fill_from_insightface(draft: RecipeDraft, *, devices: int) -> None:
    """Say what every key that is known becomes, for `devices` GPUs that share a step."""
    of_2021 = "margin_list" not in draft and any(key in draft for key in ("loss", "lr_func", "decay_epoch"))
    _data(draft)
    _batch_and_rate(draft, devices, of_2021=of_2021)
    _network(draft)
    _head(draft, of_2021=of_2021)
    _schedule(draft, of_2021=of_2021)
    draft.sets(draft.text("rec"))
    draft.copy("seed", "seed", draft.whole("seed"))
    draft.copy("frequent", "log.every", draft.whole("frequent") or None)
    draft.harmless(LOGGING | {"dataset": "it chooses among the branches of the config, which was followed"})


def _data(draft: RecipeDraft) -> None:
    path = draft.text("rec")
    if path is None or path == "synthetic":
        draft.obstacle("rec", "the folder of the records must be said; adadistill demo trains on made-up faces")
    else:
        draft.take("rec", {"data.records": posixpath.join(posixpath.normpath(path), "train.rec")})
    dali = draft.flag("dali")
    if dali is not None:
        draft.take("dali", {"data.decoder": "dali" if dali else "cpu"}, "the same pixels, whichever decodes")
    draft.fixed("data.decoder", "cpu", _BASE)
    if draft.flag("dali_aug"):
        draft.take("dali_aug", {"augment.policy": "insightface"})
    draft.harmless({"dali_aug": "off"})
    draft.copy("num_workers", "data.workers", draft.whole("num_workers") or None)


def _batch_and_rate(draft: RecipeDraft, devices: int, *, of_2021: bool) -> None:
    batch = draft.whole("batch_size")
    if batch is None and "batch_size" not in draft:
        batch = 128
    if not batch:
        draft.obstacle("batch_size", "the images of a step must be said")
        return
    images = batch * devices
    if "batch_size" in draft:
        why = f"{batch} a GPU, {devices} GPU(s): see --devices"
        draft.take("batch_size", {"data.global_batch_size": images}, why)
    draft.fixed("data.global_batch_size", images, _BASE)
    draft.copy("lr", "optim.lr", draft.number("lr"))
    draft.fixed("optim.lr", 0.1, _BASE)
    if of_2021:
        draft.fixed("optim.lr_batch_size", 512, f"{_SCRIPT}: the rate is scaled by images of a step / 512")
    draft.fixed("optim.lr_batch_size", images, f"{_SCRIPT}: the rate is not scaled, whatever the batch")
    if draft.peek("gradient_acc") not in (None, 1):
        draft.refuse(
            "gradient_acc",
            "the losses of its small batches are added up there, not averaged, so that no batch here is the same; "
            "set data.global_batch_size to the images of all of them",
        )
    draft.harmless({"gradient_acc": "one batch a step"})


def _network(draft: RecipeDraft) -> None:
    network = draft.text("network")
    if network is not None and network in _NETWORKS:
        draft.take("network", {"student.arch": _NETWORKS[network]})
    elif "network" in draft:
        draft.obstacle("network", f"known are {', '.join(_NETWORKS)}")
    draft.fixed("student.arch", "iresnet50", _BASE)
    draft.copy("embedding_size", "student.embedding_dim", draft.whole("embedding_size"))
    draft.fixed("student.embedding_dim", 512, _BASE)
    half = draft.flag("fp16")
    if half is not None:
        why = "bfloat16 on CUDA, which needs no loss scaling" if half else ""
        draft.take("fp16", {"precision": "auto" if half else "float32"}, why)
    draft.fixed("precision", "float32", _BASE)


def _head(draft: RecipeDraft, *, of_2021: bool) -> None:
    loss = draft.text("loss")
    if of_2021:
        kind = (loss or "").lower()
        if kind not in INSIGHTFACE_LOSSES:
            draft.obstacle("loss", f"the head must be said; known are {', '.join(INSIGHTFACE_LOSSES)}, or margin_list")
        else:
            draft.take("loss", {"head.kind": kind})
            draft.copy("m", "head.margin", draft.number("m"))
            draft.fixed("head.margin", INSIGHTFACE_LOSSES[kind], _SCRIPT)
    else:
        head = _margins(draft.peek("margin_list"))
        if "margin_list" not in draft:
            draft.fixed("head.kind", "arcface", _BASE)
            draft.fixed("head.margin", 0.5, _BASE)
        elif head is None:
            why = "a head is (1, m, 0), ArcFace, or (1, 0, m), CosFace; these margins are neither"
            draft.obstacle("margin_list", why)
        else:
            draft.take("margin_list", head)
            if loss is not None and loss.lower() == head["head.kind"]:
                draft.harmless({"loss": "margin_list says it, with its margin"})
    draft.refuse("loss", "margin_list says the head, and this says another")
    draft.copy("s", "head.logit_scale", draft.number("s"))
    draft.fixed("head.logit_scale", 64.0, _SCRIPT)
    draft.fixed("head.margin_grad", "exact" if of_2021 else "straight_through", "as its margins pass gradients")
    draft.fixed("centres.kind", "trainable", "no teacher")
    draft.fixed("centres.placement", "sharded", "as its Partial FC; replicated computes the same")
    if draft.peek("sample_rate") not in (None, 1):
        draft.refuse("sample_rate", "classes are not sampled here: the softmax is over all of them")
    draft.harmless({"sample_rate": "all classes, as here"})
    if draft.peek("interclass_filtering_threshold"):
        draft.refuse("interclass_filtering_threshold", "cosines of other classes are not filtered here")
    draft.harmless({"interclass_filtering_threshold": "off"})


def _margins(margins: Any) -> dict[str, Any] | None:
    if not (isinstance(margins, list | tuple) and len(margins) == 3):
        return None
    if not all(isinstance(m, int | float) and not isinstance(m, bool) for m in margins):
        return None
    multiplied, angular, additive = margins
    if multiplied != 1 or (angular and additive):
        return None
    if additive:
        return {"head.kind": "cosface", "head.margin": additive}
    return {"head.kind": "arcface", "head.margin": angular}


def _schedule(draft: RecipeDraft, *, of_2021: bool) -> None:
    if draft.peek("optimizer") not in (None, "sgd"):
        draft.refuse("optimizer", "SGD is the only optimiser here")
    draft.harmless({"optimizer": "SGD, as here"})
    if draft.peek("momentum") not in (None, _MOMENTUM):
        draft.leave("momentum", f"its training script ignores it and takes {_MOMENTUM}")
    draft.copy("momentum", "optim.momentum", draft.number("momentum"))
    draft.fixed("optim.momentum", _MOMENTUM, _SCRIPT)
    draft.copy("weight_decay", "optim.weight_decay", draft.number("weight_decay"))
    draft.fixed("optim.weight_decay", 5e-4, _BASE)
    draft.fixed("optim.clip_norm", 5.0, _SCRIPT)
    epochs = draft.epochs()
    warmup, drops = draft.number("warmup_epoch"), draft.items("decay_epoch", int, "whole numbers")
    if not of_2021:
        draft.fixed("optim.schedule", "polynomial", _SCRIPT)
        draft.fixed("optim.power", 1.0, _SCRIPT)
        for key in ("lr_func", "decay_epoch"):
            draft.peek(key)
            draft.refuse(key, "the script that reads margin_list has one schedule, polynomial, and ignores this one")
    elif "lr_func" in draft and "decay_epoch" in draft:
        draft.obstacle("lr_func", "decay_epoch says the schedule too; remove the one that its script does not read")
    elif drops is not None:
        kept = sorted(epoch for epoch in drops if 0 < epoch < epochs)
        draft.take("decay_epoch", {"optim.milestones": kept}, "epochs from 0, at whose start the rate drops")
        draft.fixed("optim.schedule", "step", _SCRIPT)
        draft.fixed("optim.gamma", 0.1, _SCRIPT)
    elif "lr_func" not in draft:
        draft.obstacle("decay_epoch", "the rate schedule must be said: decay_epoch = [epochs], or lr_func")
    elif take_step_rule(draft, epochs):
        draft.harmless({"warmup_epoch": "lr_func says how the rate warms up"})
        return
    if warmup is not None:
        draft.take("warmup_epoch", {"optim.warmup_epochs": max(0, warmup)})
    draft.fixed("optim.warmup", "linear", _SCRIPT)
