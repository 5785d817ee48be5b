"""Entry point: score a checkpoint on verification sets.

    adadistill evaluate runs/casia/checkpoints/step-00012000 --sets data/lfw.bin data/cfp_fp.bin
    torchrun --standalone --nproc_per_node=2 -m adadistill.recipes.evaluate runs/casia --sets data/lfw.bin

Prints one table and writes the same numbers as JSON (with protocol, checkpoint hash, and why a number is missing) and
as CSV (`metric,value` with the keys that AdaDistill's users know). Exit: 0 when scored, 2 when the command, the
checkpoint or a set is wrong, 1 when the network gives NaN or infinity.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported when work begins, so that --help answers at once
    from adadistill.core.network_checkpoint import LoadedNetwork
    from adadistill.core.precision import PrecisionName
    from adadistill.core.verification import VerificationResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `adadistill evaluate`; exit codes as the module says."""
    options = _parser().parse_args(arguments)
    from adadistill.core.checkpoints import CheckpointError
    from adadistill.core.distributed import LaunchError
    from adadistill.core.verification import NonFiniteEmbeddingsError
    from adadistill.loaders.pixels import ImageDecodeError
    from adadistill.loaders.verification_pairs import VerificationSetError

    try:
        run(
            options.checkpoint,
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
    except (CheckpointError, ImageDecodeError, LaunchError, OSError, VerificationSetError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def run(
    checkpoint: Path,
    sets: Sequence[Path],
    *,
    out: Path | None = None,
    batch_size: int = 256,
    device: str | None = None,
    precision: PrecisionName = "float32",
    far: float = 1e-3,
) -> dict[str, VerificationResult]:
    """Score a checkpoint, print the table, write the reports; under torchrun the ranks share the images.

    Args:
        checkpoint: a checkpoint directory, or a run folder, whose newest valid checkpoint is taken.
        sets: `.bin` files; each is named by its stem.
        out: folder for `verification-<checkpoint>.json` and `.csv`; default: `report` in the checkpoint's run folder.
        batch_size: images per forward pass and rank.
        device: `cpu`, `cuda`, `cuda:N`, or None for CUDA where there is one.
        precision: of the network; float32 by default, so that numbers do not depend on the device's habits.
        far: false-accept rate of the reported TARs, in (0, 1].

    Returns:
        Set name -> result, on every rank.

    Raises:
        CheckpointError, VerificationSetError, ImageDecodeError, LaunchError, OSError: before anything is computed.
        NonFiniteEmbeddingsError: the network gives NaN or infinity.
    """
    import torch

    from adadistill.core.distributed import distributed_session
    from adadistill.core.evaluation import VerificationSets, evaluate_sets
    from adadistill.core.network_checkpoint import load_network
    from adadistill.core.precision import resolve_precision

    with distributed_session(device) as ranks:
        formats = resolve_precision(precision, ranks.device)
        loaded = load_network(checkpoint, device=ranks.device)
        loaded.network.to(dtype=formats.dtype)
        if formats.channels_last:
            loaded.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decoded = VerificationSets.load(sets, loaded.image_size, rank=ranks.rank, world_size=ranks.world_size)
        results: dict[str, VerificationResult] = {}
        for one in decoded:
            results |= evaluate_sets(
                loaded.network,
                VerificationSets((one,)),
                ranks=ranks,
                batch_size=batch_size,
                precision=formats,
                far=far,
            )
            if ranks.is_main:
                print(f"{one.name}  {results[one.name].summary()}", file=sys.stderr, flush=True)
        if ranks.is_main:
            setting = {"precision": precision, "device": _device_name(ranks.device), "world_size": ranks.world_size}
            json_path, csv_path = write_reports(out or report_folder(loaded.path), loaded, results, setting)
            print(results_table(results))
            print(f"written to {json_path} and {csv_path.name}")
    return results


def report_folder(checkpoint: Path) -> Path:
    """`RUN/report` for a checkpoint `RUN/checkpoints/step-*`; `report` beside any other checkpoint directory."""
    parent = checkpoint.resolve().parent
    return (parent.parent if parent.name == "checkpoints" else parent) / "report"


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
    folder: Path, loaded: LoadedNetwork, results: Mapping[str, VerificationResult], setting: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write `verification-<checkpoint>.json` and `.csv`; each file appears whole or not.

    Args:
        folder: made where it is missing.
        setting: precision, device and world size, kept in the JSON.

    Returns:
        The paths of the JSON and the CSV file.
    """
    from adadistill.core.checkpoints.files import MODEL_NAME, read_manifest

    report = {
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        "model_sha256": read_manifest(loaded.path)[MODEL_NAME].sha256,
        "network": dataclasses.asdict(loaded.backbone),
        "image_size": loaded.image_size,
        **setting,
        "sets": {name: result.to_json() for name, result in results.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    json_path = folder / f"verification-{loaded.path.name}.json"
    csv_path = json_path.with_suffix(".csv")
    _write_whole(json_path, json.dumps(report, indent=2, allow_nan=False) + "\n")
    _write_whole(csv_path, csv_report(results))
    return json_path, csv_path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adadistill evaluate",
        description="Score a checkpoint on verification sets: ten-fold accuracy as published, TAR at FAR, AUC, norms.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint directory, or run folder (its newest valid one)")
    parser.add_argument("--sets", type=Path, nargs="+", required=True, metavar="BIN", help="verification sets")
    parser.add_argument("--out", type=Path, help="folder for the reports (default: report in the run folder)")
    parser.add_argument("--batch-size", type=_positive, default=256, help="images per forward pass and rank")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA where there is one)")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float64"),
        default="float32",
        help="of the network (default: float32; auto is bfloat16 on CUDA)",
    )
    parser.add_argument("--far", type=_rate, default=1e-3, help="false-accept rate of the TARs (default: 1e-3)")
    return parser


def _positive(text: str) -> int:
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


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
