"""Trials of whole commands: what a user sees of a hostile file is one line that names it, and exit code 1 or 2."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import torch

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin
from adadistill.recipes import cli
from trials.mutation_kinds.checkpoint_folders import rewrite_state, spoil
from trials.mutation_kinds.damage import Rng, damage_bytes, damage_text
from trials.mutation_kinds.image_attacks import plain_jpeg
from trials.mutation_kinds.pickle_attacks import executing_pickles
from trials.mutation_kinds.records import SIDE, Original, record_originals
from trials.mutation_kinds.trial import Ending

_RECIPE = """
name: tiny
seed: 5
data: {{records: {folder}/train.rec, image_size: 32, global_batch_size: 8, decoder: cpu, workers: 1}}
student: {{arch: mobilefacenet, embedding_dim: 16, width: 0.125}}
centres: {{kind: trainable}}
geometry_margin: {{mode: off}}
optim: {{lr: 0.1, epochs: 1, milestones: [], warmup_epochs: 0}}
log: {{every: 3}}
"""


class CommandLines:
    """`data check`, `data stats`, `evaluate`, `convert`, `train`, `train --resume auto`, each on something hostile."""

    group = "command line"
    damage = "records, indices, sets, recipes, checkpoints and weights as above, given to whole commands"
    promise = "exit code 0, 1 or 2, no traceback, and an error that names the file"

    def __init__(self) -> None:
        self._records: Original
        self._network: dict[str, bytes] = {}
        self._run: dict[str, bytes] = {}
        self._sets = b""
        self._weights = b""
        self._pickles: list[bytes] = []

    def prepare(self, folder: Path) -> None:
        self._records = record_originals(folder)[0]
        self._pickles = list(executing_pickles(folder.parent / "canary").values())
        backbone = BackboneConfig(arch="mobilefacenet", embedding_dim=16, width=0.125)
        network = build_backbone(backbone, SIDE, generator=0)
        save_network(folder / "network", network, backbone, SIDE)
        self._network = _tree(folder / "network")
        write_verification_bin(folder / "set.bin", [plain_jpeg(k) for k in range(40)], [bool(k % 2) for k in range(20)])
        self._sets = (folder / "set.bin").read_bytes()
        torch.save(dict(network.state_dict()), folder / "weights.pth")
        self._weights = (folder / "weights.pth").read_bytes()
        self._records.write(folder)
        (folder / "recipe.yaml").write_text(_RECIPE.format(folder=folder))
        code, text = _call(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--device", "cpu"])
        if code != 0:
            raise RuntimeError(f"the sound run failed: {text}")
        self._run = _tree(folder / "run")

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        commands: tuple[Callable[[Rng, Path], tuple[str, list[str], str]], ...] = (
            self._verify,
            self._stats,
            self._evaluate_set,
            self._evaluate_checkpoint,
            self._convert,
            self._train_recipe,
            self._train_records,
            self._resume,
            self._resume_forged,
        )
        damage, command, named = commands[number % len(commands)](rng, folder)
        damage = f"{' '.join(command[:2]) if command[0] == 'data' else command[0]}: {damage}"
        try:
            code, text = _call(command)
        except Exception as error:
            return Ending("traceback", False, damage, f"{type(error).__name__}: {str(error)[:250]}")
        if "Traceback" in text:
            return Ending("traceback", False, damage, text[-300:])
        if code not in (0, 1, 2):
            return Ending("another exit code", False, damage, f"{code}: {text[-200:]}")
        if code and named not in text:
            return Ending("refused without the file's name", False, damage, text[-300:])
        return Ending(f"exit code {code}", True, damage)

    def _damaged_records(self, rng: Rng, folder: Path) -> str:
        damage, body = damage_bytes(rng, self._records.rec, [self._records.rec])
        self._records.write(folder, rec=body)
        return damage

    def _verify(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        damage = self._damaged_records(rng, folder)
        return damage, ["data", "check", str(folder / "train.rec"), "--decode", "--workers", "1"], ""

    def _stats(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        damage, body = damage_text(rng, self._records.idx, [self._records.idx])
        path = self._records.write(folder, idx=body)
        return damage, ["data", "stats", str(path)], "train."

    def _evaluate_set(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        _plant(folder / "network", self._network)
        damage, body = "a pickle that executes", self._pickles[int(rng.integers(len(self._pickles)))]
        if rng.random() < 0.5:
            damage, body = damage_bytes(rng, self._sets, [self._sets])
        (folder / "set.bin").write_bytes(body)
        return damage, self._evaluation(folder), "set"

    def _evaluate_checkpoint(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        _plant(folder / "network", self._network)
        (folder / "set.bin").write_bytes(self._sets)
        names = sorted(self._network)
        file = folder / "network" / names[int(rng.integers(len(names)))]
        damage, body = damage_bytes(rng, file.read_bytes(), [file.read_bytes()])
        file.write_bytes(body)
        return damage, self._evaluation(folder), "network"

    def _evaluation(self, folder: Path) -> list[str]:
        sets = ["--sets", str(folder / "set.bin"), "--out", str(folder / "report"), "--device", "cpu"]
        return ["evaluate", str(folder / "network"), *sets]

    def _convert(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        damage, body = "a pickle that executes", self._pickles[int(rng.integers(len(self._pickles)))]
        if rng.random() < 0.7:
            damage, body = damage_bytes(rng, self._weights, [self._weights])
        (folder / "weights.pth").write_bytes(body)
        return damage, ["convert", str(folder / "weights.pth"), str(folder / "out"), "--image-size", str(SIDE)], ""

    def _train_recipe(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        self._records.write(folder)
        body = _RECIPE.format(folder=folder).encode()
        damage, body = damage_text(rng, body, [body])
        (folder / "recipe.yaml").write_bytes(body)
        # Ten billion epochs are a sound recipe too.
        return damage, [*self._training(folder), "optim.epochs=1"], ""

    def _train_records(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        damage = self._damaged_records(rng, folder)
        (folder / "recipe.yaml").write_text(_RECIPE.format(folder=folder))
        return damage, self._training(folder), "train.rec"

    def _resume(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        self._ready_to_resume(folder)
        names = [name for name in sorted(self._run) if "checkpoints" in name]
        file = folder / "run" / names[int(rng.integers(len(names)))]
        damage, body = damage_bytes(rng, file.read_bytes(), [file.read_bytes()])
        file.write_bytes(body)
        return damage, [*self._training(folder), "--resume", "auto"], ""

    def _resume_forged(self, rng: Rng, folder: Path) -> tuple[str, list[str], str]:
        self._ready_to_resume(folder)
        newest = max((folder / "run" / "checkpoints").iterdir())
        name = ("state.json", "rank-00-of-01.json", "optimiser.json")[int(rng.integers(3))]
        content = json.loads((newest / name).read_text())
        rewrite_state(newest, name, spoil(rng, content))
        return f"{name} forged", [*self._training(folder), "--resume", "auto"], ""

    def _ready_to_resume(self, folder: Path) -> None:
        self._records.write(folder)
        recipe = _RECIPE.format(folder=folder).replace("epochs: 1", "epochs: 2")
        (folder / "recipe.yaml").write_text(recipe)
        _plant(folder / "run", self._run)

    def _training(self, folder: Path) -> list[str]:
        return ["train", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--device", "cpu"]


def _call(command: list[str]) -> tuple[int, str]:
    """Exit code of a command, and what it wrote to standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(command)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 2
    return code, errors.getvalue()


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _plant(folder: Path, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
