"""The other files and libraries a recipe asks for: packed store, decoder, frozen centres, what the run is scored on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from adadistill.core.launch_check.findings import Findings, stat_of
from adadistill.core.recipe import Recipe
from adadistill.core.training.apex_sgd import require_apex
from adadistill.core.training.compiler_check import training_switches, try_compilers
from adadistill.loaders.pipelines.dali_pipeline import require_dali
from adadistill.loaders.pipelines.pipeline import open_store
from adadistill.loaders.records.image_source import ImageSource


def check_pixel_source(recipe: Recipe, records: ImageSource | None, device: torch.device, findings: Findings) -> None:
    """What turns records into pixels: a packed store, DALI, or the decoder that is always there."""
    data = recipe.data
    if data.packed is not None:
        if findings.will_read("data.packed", data.packed, a_folder=True) and records is not None:
            with findings.collected():
                open_store(data, records)
        return
    if data.decoder == "dali":
        with findings.collected():
            require_dali()
        if data.decode_on == "gpu" and device.type != "cuda":
            findings.problems.append(f"data.decode_on is gpu, and the run is on {device}; set it to auto or cpu")
    elif importlib.util.find_spec("simplejpeg") is None:
        findings.problems.append("data.decoder cpu needs simplejpeg, which is not installed: pip install simplejpeg")


def check_optimiser(recipe: Recipe, device: torch.device, findings: Findings) -> None:
    """apex, where the recipe asks for it."""
    if recipe.optim.backend == "apex":
        with findings.collected():
            require_apex(device)


def check_compilers(recipe: Recipe, device: torch.device, findings: Findings) -> None:
    """What compiles the networks of the run, tried on a few lines."""
    with findings.collected():
        try_compilers(training_switches(recipe, device), device)


def check_copies(recipe: Recipe, findings: Findings) -> None:
    """What copies the metrics elsewhere."""
    with findings.collected():
        recipe.log.copies.require_packages()


def check_centres(recipe: Recipe, findings: Findings) -> None:
    """The file or run of frozen centres; its rows are read when the run starts."""
    if recipe.centres.path is not None:
        findings.will_read("centres.path", recipe.centres.path)


def check_evaluation(recipe: Recipe, findings: Findings) -> None:
    """Verification sets and folders that the run is scored on; they are decoded when it starts."""
    config = recipe.evaluation
    for path in config.sets:
        if findings.will_read("evaluation.sets", path) and _is_folder(path) and not _has_pyarrow():
            findings.problems.append(f"evaluation.sets: {path} is an Arrow set: pip install 'adadistill[arrow]'")
    for key, folders in (("evaluation.ijb", config.ijb), ("evaluation.tinyface", config.tinyface)):
        for path in folders:
            findings.will_read(key, path, a_folder=True)


def _is_folder(path: str) -> bool:
    return stat_of(path) is not None and Path(path).is_dir()


def _has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None
