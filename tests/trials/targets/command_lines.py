"""Whole commands on something hostile: what a user sees is one line that names the file, and exit code 1 or 2."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import torch

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints import CheckpointError
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin
from adadistill.recipes import cli
from trials.small_run import Ending, difference, ending_of
from trials.targets.checkpoints import WAYS, forge_json
from trials.targets.damage import TEXT
from trials.targets.image_attacks import plain_jpeg
from trials.targets.pickle_attacks import executing_pickles
from trials.targets.records import SIDE, record_originals, without_seal
from trials.targets.target import BrokenPromiseError, Files, Lie, Material, Mutant, Original, read_files, write_files

_RECIPE = """
name: tiny
seed: 5
data: {records: FOLDER/train.rec, image_size: 32, global_batch_size: 8, decoder: cpu, workers: 1}
student: {arch: mobilefacenet, embedding_dim: 16, width: 0.125}
centres: {kind: trainable}
geometry_margin: {mode: off}
optim: {lr: 0.1, epochs: 2, milestones: [], warmup_epochs: 0}
checkpoint: {every_steps: 1, every_epochs: null, keep: 2}
log: {every: 1}
"""
_CPU = ["--device", "cpu"]
# Ten billion epochs are a sound recipe too.
_TRAIN = ["train", "{}/recipe.yaml", "optim.epochs=2", "--out", "{}/run", *_CPU]
_EVALUATE = ["evaluate", "{}/network", "--sets", "{}/set.bin", "--out", "{}/report", *_CPU]
_COMMANDS = {
    "data check": ["data", "check", "{}/train.rec", "--decode", "--workers", "1"],
    "data stats": ["data", "stats", "{}/train.rec"],
    "evaluate, the set": _EVALUATE,
    "evaluate, the checkpoint": _EVALUATE,
    "convert": ["convert", "{}/weights.pth", "{}/out", "--image-size", str(SIDE)],
    "train, the recipe": _TRAIN,
    "train, the records": [*_TRAIN, "data.records={}/train.rec"],
    "train --resume auto": [*_TRAIN, "--resume", "auto"],
}
"""Command by what it is given; `{}` stands for the folder."""


def command_lines(folder: Path) -> Material:
    """The commands above, each on files as the other targets damage them."""
    records = without_seal(record_originals(folder)[0].files)
    network, weights = _network(folder), {"weights.pth": (folder / "weights.pth").read_bytes()}
    names = [name for name in network if name.startswith("network/")]
    run = _run(folder, records)
    recipe = {"recipe.yaml": run["recipe.yaml"]}
    newest = _newest(run)
    stopped = {name: body for name, body in run.items() if not name.startswith(newest)}
    pickles = list(executing_pickles(folder.parent / "canary").values())
    lies: dict[str, dict[str, Lie]] = {
        "set": {"a pickle that executes": partial(_put, "set.bin", pickles)},
        "weights": {"a pickle that executes": partial(_put, "weights.pth", pickles)},
        "run": {"a JSON file forged": partial(_forge, _newest(stopped))},
    }
    originals = [
        Original("data check", records, "train.", hit=["train.rec"]),
        Original("data stats", records, "train.", hit=["train.idx"]),
        Original("evaluate, the set", network, "set", hit=["set.bin"], lies=lies["set"]),
        Original("evaluate, the checkpoint", network, "network", hit=names),
        Original("convert", weights, "weights.pth", hit=["weights.pth"], lies=lies["weights"]),
        Original("train, the recipe", recipe, "recipe.yaml", hit=["recipe.yaml"]),
        Original("train, the records", {**records, **recipe}, "train.rec", hit=["train.rec"]),
        Original("train --resume auto", stopped, "run", lies=lies["run"]),
    ]
    return Material(originals, _read, damages=TEXT)


def resumed_runs(folder: Path) -> Material:
    """A finished run whose newest checkpoint is damaged: it takes its last step again."""
    run = _run(folder, without_seal(record_originals(folder)[0].files))
    newest = _newest(run)
    expected = ending_of(folder / "run")
    names = [name.removeprefix(newest) for name in run if name.startswith(newest)]
    lies: dict[str, Lie] = {way: partial(_damage, newest, names, way) for way in WAYS if "older" not in way}
    original = Original("train --resume auto", run, "run", lies=lies)
    return Material([original], lambda mutant: _read_resumed(mutant, newest, expected))


def _read(mutant: Mutant) -> str:
    code, text = call(_COMMANDS[mutant.original.name], mutant.folder)
    if "Traceback" in text or code not in (0, 1, 2):
        raise BrokenPromiseError(f"exit code {code}: {text[-250:]}")
    if code and mutant.original.named not in text:
        raise BrokenPromiseError(f"refused without the file's name: {text[-250:]}")
    return f"exit code {code}"


def _read_resumed(mutant: Mutant, newest: str, expected: Ending) -> str:
    changed = [name for name, body in mutant.original.files.items() if mutant.files.get(name) != body]
    code, text = call(_COMMANDS["train --resume auto"], mutant.folder)
    if code != 0:
        raise BrokenPromiseError(f"exit code {code}: {text[-250:]}")
    step, lines = newest.split("/")[-2], text.splitlines()
    if changed and not any(step in line and name.rsplit("/", 1)[1] in line for name in changed for line in lines):
        raise BrokenPromiseError(f"{changed} not named: {text[-250:]}")
    try:
        broken = difference(ending_of(mutant.folder / "run"), expected)
    except CheckpointError as error:
        broken = str(error)
    if broken:
        raise BrokenPromiseError(broken)
    return "went on from the one before" if changed else "had nothing to do"


def call(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """Exit code of a command, and what it wrote to standard error, warnings included; a traceback is no code."""
    errors = io.StringIO()
    told, disabled = logging.StreamHandler(errors), logging.root.manager.disable
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        logging.disable(logging.NOTSET)
        logging.getLogger("adadistill").addHandler(told)
        try:
            code = cli.main([argument.replace("{}", str(folder)) for argument in command])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 2
        except Exception as error:
            raise BrokenPromiseError(f"traceback: {type(error).__name__}: {error}") from error
        finally:
            logging.disable(disabled)
            logging.getLogger("adadistill").removeHandler(told)
    return code, errors.getvalue()


def _network(folder: Path) -> Files:
    """A checkpoint of a network, and a verification set for it."""
    backbone = BackboneConfig(arch="mobilefacenet", embedding_dim=16, width=0.125)
    network = build_backbone(backbone, SIDE, generator=0)
    save_network(folder / "network", network, backbone, SIDE)
    torch.save(dict(network.state_dict()), folder / "weights.pth")
    write_verification_bin(folder / "set.bin", [plain_jpeg(k) for k in range(40)], [bool(k % 2) for k in range(20)])
    return {**read_files(folder / "network", "network/"), "set.bin": (folder / "set.bin").read_bytes()}


def _run(folder: Path, records: Files) -> Files:
    """A finished run, its last two steps saved, and its recipe, on records that stay in the folder."""
    recipe = {"recipe.yaml": _RECIPE.replace("FOLDER", str(folder)).encode()}
    write_files(folder, {**recipe, **records})
    code, text = call(_TRAIN, folder)
    if code != 0:
        raise RuntimeError(f"the sound run failed: {text}")
    return {**recipe, **read_files(folder / "run", "run/")}


def _newest(run: Files) -> str:
    """Folder of the newest checkpoint of a run."""
    return max(name.rsplit("/", 1)[0] + "/" for name in run if name.startswith("run/checkpoints/step-"))


def _put(name: str, bodies: list[bytes], rng: Random, files: Files) -> None:
    files[name] = rng.choice(bodies)


def _forge(newest: str, rng: Random, files: Files) -> None:
    forge_json(rng, files, newest, rng.choice(("state.json", "rank-00-of-01.json")))


def _damage(newest: str, names: list[str], way: str, rng: Random, files: Files) -> None:
    WAYS[way](rng, files, newest + rng.choice(names))
