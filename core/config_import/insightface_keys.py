"""What the keys of insightface's arcface_torch configs mean. Keys that a config leaves out have the values of its base.

Source: its configuration files and training scripts. Since 2022 (`margin_list`) the rate is not scaled by the batch and
falls polynomially, and margins pass gradients straight through. In 2021 (`loss`, with `lr_func` or `decay_epoch`) it
was for 512 images and fell in steps, and gradients were exact. The classes are spread over the GPUs.
"""

from __future__ import annotations

import posixpath
from typing import Any, Final

from adadistill.core.config_import.account import NEEDED, Account, Copied, Kind, Only, Value
from adadistill.core.config_import.adadistill_keys import LOGGING, take_step_rule

_SCRIPT: Final = "fixed in the training script"
_BASE: Final = "insightface's base config"
_NETWORKS: Final = {
    **{f"r{depth}": f"iresnet{depth}" for depth in (18, 34, 50, 100, 200)},
    **{name: name for name in ("iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200", "mbf", "mbf_large")},
}
_MOMENTUM: Final = 0.9

_COPIED: Final = (
    Copied("seed", "seed", Kind.WHOLE),
    Copied("frequent", "log.every", Kind.COUNT),
    Copied("num_workers", "data.workers", Kind.COUNT),
    Copied("embedding_size", "student.embedding_dim", Kind.WHOLE, Value(512, _BASE)),
    Copied("s", "head.logit_scale", Kind.NUMBER, Value(64.0, _SCRIPT)),
    Copied("num_epoch", "optim.epochs", Kind.WHOLE, NEEDED),
    Copied("lr", "optim.lr", Kind.NUMBER, Value(0.1, _BASE)),
    Copied("momentum", "optim.momentum", Kind.NUMBER, Value(_MOMENTUM, _SCRIPT)),
    Copied("weight_decay", "optim.weight_decay", Kind.NUMBER, Value(5e-4, _BASE)),
)
_ONLY: Final = {
    "gradient_acc": Only(
        1,
        "one batch a step",
        "the losses of its small batches are added up there, not averaged, so that no batch here is the same; "
        "set data.global_batch_size to the images of all of them",
    ),
    "optimizer": Only("sgd", "SGD, as here", "SGD is the only optimiser here"),
}
_HARMLESS: Final = LOGGING | {
    "dataset": "it chooses among the branches of the config, which was followed",
    "dali_aug": "off",
    "warmup_epoch": "lr_func says how the rate warms up",
}

INSIGHTFACE_LOSSES: Final = {"arcface": 0.5, "cosface": 0.4}
"""Heads of the scripts of 2021, with the margin that is fixed there."""


def fill_from_insightface(account: Account, *, devices: int) -> None:
    """Say what every key that is known becomes, for `devices` GPUs that share a step."""
    of_2021 = "margin_list" not in account and any(key in account for key in ("loss", "lr_func", "decay_epoch"))
    if account.get("momentum") not in (None, _MOMENTUM):
        account.leave("momentum", f"its training script ignores it and takes {_MOMENTUM}")
    account.copy(_COPIED)
    account.only(_ONLY)
    _classes(account)
    _data(account, devices, of_2021=of_2021)
    _network(account)
    if of_2021:
        _head_of_2021(account)
        ruled = _schedule_of_2021(account)
    else:
        ruled = False
        _head(account)
        account.fixed({"optim.schedule": "polynomial", "optim.power": 1.0}, _SCRIPT)
        for key in ("lr_func", "decay_epoch"):
            account.get(key)
            account.refuse(key, "the script that reads margin_list has one schedule, polynomial, and ignores this one")
    account.refuse("loss", "margin_list says the head, and this says another")
    margin_grad = "exact" if of_2021 else "straight_through"
    account.fixed({"head.margin_grad": margin_grad}, "as its margins pass gradients")
    account.fixed({"centres.kind": "trainable"}, "no teacher")
    account.fixed({"centres.placement": "sharded"}, "as its Partial FC; replicated computes the same")
    account.fixed({"optim.clip_norm": 5.0}, _SCRIPT)
    if not ruled:
        warmup = account.get("warmup_epoch", Kind.NUMBER)
        if warmup is not None:
            account.take("warmup_epoch", {"optim.warmup_epochs": max(0, warmup)})
        account.fixed({"optim.warmup": "linear"}, _SCRIPT)
    account.sets(account.get("rec", Kind.TEXT))
    account.harmless(_HARMLESS)


def _data(account: Account, devices: int, *, of_2021: bool) -> None:
    path = account.get("rec", Kind.TEXT)
    if path is None or path == "synthetic":
        account.obstacle("rec", "the folder of the records must be said; adadistill demo trains on made-up faces")
    else:
        account.take("rec", {"data.records": posixpath.join(posixpath.normpath(path), "train.rec")})
    dali = account.get("dali", Kind.FLAG)
    if dali is not None:
        account.take("dali", {"data.decoder": "dali" if dali else "cpu"}, "the same pixels, whichever decodes")
    account.fixed({"data.decoder": "cpu"}, _BASE)
    if account.get("dali_aug", Kind.FLAG):
        account.take("dali_aug", {"augment.policy": "insightface"})
    batch = account.get("batch_size", Kind.WHOLE) if "batch_size" in account else 128
    if not batch:
        account.obstacle("batch_size", "the images of a step must be said")
        return
    images = batch * devices
    if "batch_size" in account:
        why = f"{batch} a GPU, {devices} GPU(s): see --devices"
        account.take("batch_size", {"data.global_batch_size": images}, why)
    account.fixed({"data.global_batch_size": images}, _BASE)
    scaled = "the rate is scaled by images of a step / 512" if of_2021 else "the rate is not scaled, whatever the batch"
    account.fixed({"optim.lr_batch_size": 512 if of_2021 else images}, f"{_SCRIPT}: {scaled}")


def _network(account: Account) -> None:
    network = account.get("network", Kind.TEXT)
    if network in _NETWORKS:
        account.take("network", {"student.arch": _NETWORKS[network]})
    elif "network" in account:
        account.obstacle("network", f"known are {', '.join(_NETWORKS)}")
    account.fixed({"student.arch": "iresnet50"}, _BASE)
    half = account.get("fp16", Kind.FLAG)
    if half is not None:
        why = "bfloat16 on CUDA, which needs no loss scaling" if half else ""
        account.take("fp16", {"precision": "auto" if half else "float32"}, why)
    account.fixed({"precision": "float32"}, _BASE)


def _classes(account: Account) -> None:
    """Which classes the softmax compares with."""
    rate = account.get("sample_rate", Kind.NUMBER)
    above = account.get("interclass_filtering_threshold", Kind.NUMBER)
    if rate is not None and rate != 1:
        account.take(
            "sample_rate", {"centres.sample_rate": rate}, "centres that are not drawn keep their momentum here"
        )
    if above:
        account.take("interclass_filtering_threshold", {"head.filter_above": above})
    account.harmless({"sample_rate": "all classes, as here", "interclass_filtering_threshold": "off"})


def _head(account: Account) -> None:
    head = _margins(account.get("margin_list"))
    if "margin_list" not in account:
        account.fixed({"head.kind": "arcface", "head.margin": 0.5}, _BASE)
    elif head is None:
        why = "a head is (1, m, 0), ArcFace, or (1, 0, m), CosFace; these margins are neither"
        account.obstacle("margin_list", why)
    else:
        account.take("margin_list", head)
        if str(account.get("loss", Kind.TEXT)).lower() == head["head.kind"]:
            account.harmless({"loss": "margin_list says it, with its margin"})


def _head_of_2021(account: Account) -> None:
    kind = str(account.get("loss", Kind.TEXT)).lower()
    if kind not in INSIGHTFACE_LOSSES:
        account.obstacle("loss", f"the head must be said; known are {', '.join(INSIGHTFACE_LOSSES)}, or margin_list")
        return
    account.take("loss", {"head.kind": kind})
    account.copy([Copied("m", "head.margin", Kind.NUMBER, Value(INSIGHTFACE_LOSSES[kind], _SCRIPT))])


def _margins(margins: Any) -> dict[str, Any] | None:
    if not (isinstance(margins, list | tuple) and len(margins) == 3):
        return None
    if not all(isinstance(m, int | float) and not isinstance(m, bool) for m in margins):
        return None
    multiplied, angular, additive = margins
    if multiplied != 1 or (angular and additive):
        return None
    return {"head.kind": "cosface" if additive else "arcface", "head.margin": additive or angular}


def _schedule_of_2021(account: Account) -> bool:
    """Take the schedule; true where it is a function, which says how the rate warms up too."""
    drops = account.get("decay_epoch", Kind.WHOLES)
    if "lr_func" in account and "decay_epoch" in account:
        account.obstacle("lr_func", "decay_epoch says the schedule too; remove the one that its script does not read")
    elif drops is not None:
        kept = sorted(epoch for epoch in drops if 0 < epoch < (account.get("num_epoch", Kind.WHOLE) or 0))
        account.take("decay_epoch", {"optim.milestones": kept}, "epochs from 0, at whose start the rate drops")
        account.fixed({"optim.schedule": "step", "optim.gamma": 0.1}, _SCRIPT)
    elif "lr_func" in account:
        return take_step_rule(account)
    else:
        account.obstacle("decay_epoch", "the rate schedule must be said: decay_epoch = [epochs], or lr_func")
    return False
