"""Entry point: score a network on verification sets.

    adadistill evaluate runs/casia/checkpoints/step-00012000 --sets data/lfw.bin data/cfp_fp.bin
    adadistill evaluate r50.onnx --color rgb --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --sets data/lfw.bin
    adadistill evaluate backbone.pth --sets data/lfw.bin        (also .pt .ckpt .safetensors, or cvlface_ir50)
    adadistill evaluate --teacher recipe.yaml --sets data/lfw.bin
    torchrun --standalone --nproc_per_node=2 -m adadistill.recipes.evaluate runs/casia --sets data/lfw.bin

Prints one table and writes the same numbers as JSON (with protocol, hash of the weights, colour order, and why a number
is missing) and as CSV (`metric,value` with the keys that AdaDistill's users know). Exit: 0 when scored, 2 when the
command, the network or a set is wrong, 1 when the network gives NaN or infinity.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.recipes.scored_network import (
    ScoredNetwork,
    TeacherSource,
    load_scored,
    prepare_,
    source_kind,
    teacher_of_recipe,
)

if TYPE_CHECKING:  # imported when work begins, so that --help answers at once
    from adadistill.core.precision import PrecisionName
    from adadistill.core.verification import VerificationResult

TEACHER_OPTIONS = ("color", "mean", "std", "arch", "format", "revision", "lock")
"""Options that are fields of `TeacherConfig`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `adadistill evaluate`; exit codes as the module says."""
    parser = _parser()
    options = parser.parse_args(arguments)
    misuse = _misuse(options)
    if misuse is not None:
        parser.error(misuse)
    from adadistill.core.checkpoints import CheckpointError
    from adadistill.core.distributed import LaunchError
    from adadistill.core.verification import NonFiniteEmbeddingsError

    try:
        run(
            _source(options),
            options.sets,
            out=options.out,
            batch_size=options.batch_size,
            device=options.device,
            precision=options.precision,
            far=options.far,
        )
    except NonFiniteEmbeddingsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except (CheckpointError, LaunchError, OSError, ValueError) as error:
        text = str(error) if options.teacher is not None else _in_options(str(error))
        print(f"{type(error).__name__}: {text}", file=sys.stderr)
        return 2
    return 0


def run(
    source: Path | TeacherSource,
    sets: Sequence[Path],
    *,
    out: Path | None = None,
    batch_size: int = 256,
    device: str | None = None,
    precision: PrecisionName = "float32",
    far: float = 1e-3,
) -> dict[str, VerificationResult]:
    """Score a network, print the table, write the reports; under torchrun the ranks share the images.

    Args:
        source: a checkpoint directory, a run folder, whose newest valid checkpoint is taken, or another network.
        sets: `.bin` files; each is named by its stem.
        out: folder for `verification-<name>.json` and `.csv`; default: `report` in the checkpoint's run folder, or
            beside the network's file, or here for a network of the Hub.
        batch_size: images per forward pass and rank.
        device: `cpu`, `cuda`, `cuda:N`, or None for CUDA where there is one.
        precision: of the network; float32 by default, so that numbers do not depend on the device's habits. An ONNX
            file computes in float32, whatever this says.
        far: false-accept rate of the reported TARs, in (0, 1].

    Returns:
        Set name -> result, on every rank.

    Raises:
        CheckpointError, TeacherError, WeightFileError, VerificationSetError, ImageDecodeError, LaunchError, OSError:
            before anything is computed.
        NonFiniteEmbeddingsError: the network gives NaN or infinity.
    """
    from adadistill.core.distributed import distributed_session
    from adadistill.core.evaluation import VerificationSets, evaluate_sets
    from adadistill.core.precision import resolve_precision
    from adadistill.core.teachers import computes_in_torch

    with distributed_session(device) as ranks:
        scored = load_scored(source, ranks)
        if precision != "float32" and not computes_in_torch(scored.network):
            if ranks.is_main:
                print(f"{scored.name} computes as its file says; scored in float32, not {precision}", file=sys.stderr)
            precision = "float32"
        formats = resolve_precision(precision, ranks.device)
        prepare_(scored.network, formats, ranks)
        decoded = VerificationSets.load(sets, scored.image_size, rank=ranks.rank, world_size=ranks.world_size)
        results: dict[str, VerificationResult] = {}
        for one in decoded:
            results |= evaluate_sets(
                scored.network,
                VerificationSets((one,)),
                ranks=ranks,
                batch_size=batch_size,
                precision=formats,
                far=far,
            )
            if ranks.is_main:
                print(f"{one.name}  {results[one.name].summary()}", file=sys.stderr, flush=True)
        if ranks.is_main:
            setting = {"precision": precision, "device": device_name(ranks.device), "world_size": ranks.world_size}
            json_path, csv_path = write_reports(out or scored.folder, scored, results, setting)
            if scored.announcement is not None:
                print(scored.announcement)
            print(results_table(results))
            print(f"written to {json_path} and {csv_path.name}")
    return results


def results_table(results: Mapping[str, VerificationResult]) -> str:
    """An aligned table, one row a set, then one line for each number that is missing or needs care."""
    far = next(iter(results.values())).far_target
    head = ["set", "pairs", "accuracy %", "threshold"]
    head += [f"TAR@FAR={far:g} 10-fold %", f"TAR@FAR={far:g} strict %", "AUC", "EER %", "XNorm"]
    rows = [head]
    for name, result in results.items():
        rows.append(
            [
                name,
                str(result.pairs),
                _with_deviation(result.accuracy, result.accuracy_std),
                f"{result.threshold:.2f}",
                _with_deviation(result.tar_10fold, result.tar_10fold_std),
                _cell(result.tar_strict, 100.0, 2),
                _cell(result.auc, 1.0, 5),
                _cell(result.eer, 100.0, 2),
                "-" if result.xnorm is None else f"{result.xnorm:.4g}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    notes = [f"{name}: {field}: {why}" for name, result in results.items() for field, why in result.notes.items()]
    return "\n".join([*lines, *notes])


def csv_report(results: Mapping[str, VerificationResult]) -> str:
    """`metric,value` lines with dotted keys, sorted; rates in [0, 1]. Numbers that are not defined have no line.

    `Accuracy-Flip`, `Accuracy-Std` and `XNorm` are the keys of AdaDistill's reports.
    """
    values: dict[str, float | None] = {}
    for name, result in results.items():
        prefix = f"verification.{name}."
        values[prefix + "Accuracy-Flip"] = result.accuracy
        values[prefix + "Accuracy-Std"] = result.accuracy_std
        values[prefix + "XNorm"] = result.xnorm
        values[prefix + "Threshold"] = result.threshold
        values[f"{prefix}tpr_at_fpr_{result.far_target:g}_10fold"] = result.tar_10fold
        values[f"{prefix}tpr_at_fpr_{result.far_target:g}_strict"] = result.tar_strict
        values[prefix + "AUC"] = result.auc
        values[prefix + "EER"] = result.eer
    lines = [f"{_csv_field(key)},{value:.6f}" for key, value in sorted(values.items()) if value is not None]
    return "\n".join(["metric,value", *lines]) + "\n"


def write_reports(
    folder: Path, scored: ScoredNetwork, results: Mapping[str, VerificationResult], setting: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write `verification-<name>.json` and `.csv`; each file appears whole or not.

    Args:
        folder: made where it is missing.
        setting: precision, device and world size, kept in the JSON.

    Returns:
        The paths of the JSON and the CSV file.
    """
    report = {**scored.facts, **setting, "sets": {name: result.to_json() for name, result in results.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    json_path = folder / f"verification-{scored.name}.json"
    csv_path = json_path.with_suffix(".csv")
    write_whole(json_path, json.dumps(report, indent=2, allow_nan=False) + "\n")
    write_whole(csv_path, csv_report(results))
    return json_path, csv_path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill evaluate",
        description="Score a network on verification sets: ten-fold accuracy as published, TAR at FAR, AUC, norms.",
    )
    parser.add_argument(
        "network",
        nargs="?",
        help="checkpoint directory, or run folder (its newest valid one); an .onnx file; public weights (.pth, .pt, "
        ".ckpt, .safetensors); a CVLface folder, repository or short name (cvlface_ir50, cvlface_ir101)",
    )
    parser.add_argument("--teacher", metavar="RECIPE", help="score the teacher of a recipe instead")
    parser.add_argument("--sets", type=Path, nargs="+", required=True, metavar="BIN", help="verification sets")
    parser.add_argument("--out", type=Path, help="folder for the reports (default: report in the run folder)")
    parser.add_argument("--batch-size", type=positive, default=256, help="images per forward pass and rank")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where there is one)")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float64"),
        default="float32",
        help="of the network (default: float32; auto is bfloat16 on CUDA)",
    )
    parser.add_argument("--far", type=_rate, default=1e-3, help="false-accept rate of the TARs (default: 1e-3)")
    _add_teacher_options(parser.add_argument_group("networks other than our checkpoints"))
    return parser


def _add_teacher_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--color", choices=("rgb", "bgr"), help="channel order it was trained on (ONNX needs it)")
    for name in ("mean", "std"):
        group.add_argument(
            f"--{name}", type=float, nargs=3, metavar=("C1", "C2", "C3"), help="of each input channel, 0 to 1 (ONNX)"
        )
    group.add_argument("--image-size", type=positive, help="side of its images in pixels (default: 112)")
    group.add_argument("--arch", help="architecture of public weights (default: recognised)")
    group.add_argument("--format", help="who published them: adadistill, insightface, adaface, cvlface (default: auto)")
    group.add_argument("--revision", help="commit of a CVLface repository (default: the locked one)")
    group.add_argument("--lock", help="lock file of CVLface repositories (default: teachers.lock.json)")


def _misuse(options: argparse.Namespace) -> str | None:
    """What is wrong with a command that is well formed; None where nothing is."""
    if (options.network is None) == (options.teacher is None):
        return "name one network: a checkpoint, a file, a CVLface network, or --teacher RECIPE"
    given = [name for name in (*TEACHER_OPTIONS, "image_size") if getattr(options, name) is not None]
    if not given:
        return None
    listed = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if options.teacher is not None:
        return f"{listed}: {options.teacher} says this of its teacher itself"
    if source_kind(options.network, options.revision) == "checkpoint":
        return f"{listed}: a checkpoint says this itself, and {options.network} is taken for one"
    return None


def _source(options: argparse.Namespace) -> Path | TeacherSource:
    """What the command line names.

    Raises:
        ValueError: options or a recipe that name no network.
    """
    if options.teacher is not None:
        return teacher_of_recipe(options.teacher)
    kind = source_kind(options.network, options.revision)
    if kind == "checkpoint":
        return Path(options.network)
    from adadistill.core.teachers import TeacherConfig

    fields = {name: getattr(options, name) for name in TEACHER_OPTIONS if getattr(options, name) is not None}
    fields |= {name: tuple(fields[name]) for name in ("mean", "std") if name in fields}
    if kind == "onnx" and not {"color", "mean", "std"} <= fields.keys():
        missing = ", ".join(f"--{name}" for name in ("color", "mean", "std") if name not in fields)
        raise ValueError(
            f"{options.network}: an ONNX file does not say how it wants its images; {missing} missing. insightface's "
            "files take --color rgb --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
        )
    try:
        config = TeacherConfig(**{kind: options.network}, **fields)
    except ValueError as error:
        listed = "\n  ".join(f"teacher.{problem}" for problem in str(error).splitlines())
        raise ValueError(f"{options.network}:\n  {listed}") from None
    return TeacherSource(config=config, image_size=options.image_size or 112)


def _in_options(text: str) -> str:
    """An error that speaks of a recipe's keys, in the words of the command line."""
    return re.sub(rf"\bteacher\.({'|'.join(TEACHER_OPTIONS)})\b", r"--\1", text)


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text}")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return value


def _cell(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def _with_deviation(rate: float | None, deviation: float | None) -> str:
    if rate is None or deviation is None:
        return "-"
    return f"{100.0 * rate:.2f} +- {100.0 * deviation:.2f}"


def _csv_field(text: str) -> str:
    """Quoted where a file name brings a comma, a quote or a line break into a key."""
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def device_name(device: Any) -> str:
    """What reports call a device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
