"""Entry point: score a network, or every one in a folder, on benchmarks.

    adadistill evaluate runs/casia/checkpoints/step-00012000 --sets data/lfw.bin data/cfp_fp.bin
    adadistill evaluate r50.onnx --color rgb --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --sets data/lfw.bin
    adadistill evaluate backbone.pth --sets data/lfw.bin        (also .pt .ckpt .safetensors, or cvlface_ir50)
    adadistill evaluate --teacher recipe.yaml --sets data/lfw.bin
    adadistill evaluate runs/casia --all --sets data/lfw.bin             (every checkpoint; goes on after a kill)
    adadistill evaluate weights --suffix .pth --sets data/lfw.bin --best-by verification.lfw.Accuracy-Flip
    torchrun --standalone --nproc_per_node=2 -m adadistill.recipes.evaluate runs/casia --sets data/lfw.bin

Prints one table and writes the same numbers as JSON (with protocol, hash of the weights, colour order, and why a number
is missing) and as CSV (`metric,value` with the keys that AdaDistill's users know), see `scoring/files.py`. --report
adds a page for people, see `report.py`. Exit: 0 when scored, 2 when the command, the network or a benchmark is wrong, 1
when a network gives NaN or infinity, or one of several could not be scored, 143 when SIGTERM stopped it (130: SIGINT).
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may come before torch is imported, which takes seconds
    from adadistill.recipes.entry_point import begin_program

    begin_program()

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.report import print_report
from adadistill.recipes.scoring.benchmark_pass import Forward, score_benchmark
from adadistill.recipes.scoring.files import Evaluation, check_places, write_evaluation
from adadistill.recipes.scoring.scored_network import (
    NAMED_SUFFIXES,
    TeacherSource,
    load_scored,
    source_kind,
    teacher_of_recipe,
)

if TYPE_CHECKING:  # imported when work begins, so that --help answers at once
    from adadistill.core.precision import PrecisionName
    from adadistill.core.scoring.pair_metrics import VerificationResult
    from adadistill.core.scoring.result import BenchmarkResult

TEACHER_OPTIONS = ("color", "mean", "std", "arch", "format", "revision", "lock")
"""Options that are fields of `TeacherConfig`."""


@entry_point("adadistill evaluate", after_stop="what --all has scored and --embeddings has kept stays")
def main(arguments: Sequence[str]) -> int:
    """Run `adadistill evaluate`; exit codes as the module says."""
    parser = _parser()
    options = parser.parse_args(arguments)
    misuse = _misuse(options)
    if misuse is not None:
        parser.error(misuse)
    names = ("ijb", "tinyface", "out", "batch_size", "device", "precision", "far", "report", "embeddings")
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    try:
        if not _many(options):
            run(_source(options, options.network), options.sets, **settings)
            return 0
        from adadistill.recipes.scoring.folder import evaluate_folder

        scored_all = evaluate_folder(
            Path(options.network),
            options.sets,
            suffixes=tuple(options.suffix or ()),
            source=lambda path: _source(options, path),
            best_by=options.best_by,
            **settings,
        )
        return 0 if scored_all else 1
    except ValueError as error:
        if options.teacher is None:  # then no recipe is about, whose keys an error might name
            error.args = (_in_options(str(error)),)
        raise


def run(
    source: Path | TeacherSource,
    sets: Sequence[Path],
    *,
    ijb: Sequence[Path] = (),
    tinyface: Sequence[Path] = (),
    out: Path | None = None,
    batch_size: int = 256,
    device: str | None = None,
    precision: PrecisionName = "float32",
    far: float = 1e-3,
    report: bool = False,
    embeddings: Path | None = None,
) -> dict[str, VerificationResult]:
    """Score a network, print the table, write the reports; under torchrun the ranks share the images.

    Args:
        source: a checkpoint directory, a run folder, whose newest valid checkpoint is taken, or another network.
        sets: verification sets; each is named by its file's stem.
        ijb: folders of IJB-B or IJB-C.
        tinyface: folders of TinyFace.
        out: folder for `verification-<name>.json` and `.csv`; default: `report` in the checkpoint's run folder, or
            beside the network's file, or here for a network of the Hub.
        batch_size: images per forward pass and rank.
        device: `cpu`, `cuda`, `cuda:N`, or None for CUDA where there is one.
        precision: of the network; float32 by default, so that numbers do not depend on the device's habits. An ONNX
            file computes in float32, whatever this says.
        far: false-accept rate of the reported TARs, in (0, 1].
        report: write `report.html` and `report.md` of everything in `out`, too.
        embeddings: folder that keeps the embeddings of IJB and TinyFace, by network and benchmark, so that a changed
            metric, or a run that was stopped, does not embed again.

    Returns:
        Verification set -> result, on every rank.

    Raises:
        CheckpointError, TeacherError, WeightFileError, VerificationSetError, ImageDecodeError, LaunchError, OSError:
            before anything is computed.
        NonFiniteEmbeddingsError: the network gives NaN or infinity.
    """
    from adadistill.core.distributed import distributed_session
    from adadistill.core.scoring.suite import BenchmarkPaths, open_benchmarks

    with distributed_session(device) as ranks:
        scored = load_scored(source, ranks)
        folder = out or scored.folder
        if ranks.is_main:
            check_places(folder, embeddings)
        forward = Forward.prepare(scored, precision, batch_size, ranks, embeddings)
        paths = BenchmarkPaths(sets=tuple(sets), ijb=tuple(ijb), tinyface=tuple(tinyface), far=far)
        benchmarks = open_benchmarks(paths, scored.image_size, ranks)
        outcomes = [score_benchmark(scored, one, forward) for one in benchmarks]
        results = {done.result.name: details for done, details in outcomes if details is not None}
        if ranks.is_main:
            evaluation = Evaluation(
                name=scored.name,
                facts=scored.facts,
                setting=forward.setting(),
                done=tuple(done for done, _ in outcomes),
            )
            json_file, csv_file = write_evaluation(folder, evaluation)
            if scored.announcement is not None:
                print(scored.announcement)
            if results:
                print(results_table(results))
            for done, details in outcomes:
                if details is None:
                    print(benchmark_table(done.result))
            print(f"written to {json_file} and {csv_file.name}")
            if report:
                print_report(folder)
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


def benchmark_table(result: BenchmarkResult) -> str:
    """An aligned table of IJB or TinyFace: one row a score, with its protocol, shares in percent."""
    rows = [
        (score.label, _cell(score.value, 100.0 if score.is_share else 1.0, 2 if score.is_share else 4), score.protocol)
        for score in result.scores
    ]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{label.ljust(wide[0])}  {value.rjust(wide[1])}  {protocol}" for label, value, protocol in rows]
    notes = dict.fromkeys(f"{score.label}: {score.note}" for score in result.scores if score.note is not None)
    return "\n".join([f"{result.name}, rates in %:", *lines, *notes])


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
    parser.add_argument(
        "--all", action="store_true", help="every checkpoint of a run folder, or every weights file of a folder"
    )
    parser.add_argument("--suffix", nargs="+", metavar="SUFFIX", help="--all, of files with these suffixes alone")
    parser.add_argument(
        "--best-by", metavar="KEY", help="key that chooses the best of all (default: mean of the headline scores)"
    )
    parser.add_argument(
        "--sets", type=Path, nargs="+", default=[], metavar="SET", help="verification sets: .bin files, Arrow folders"
    )
    parser.add_argument(
        "--ijb", type=Path, nargs="+", default=[], metavar="FOLDER", help="IJB-B or IJB-C, original or prepared"
    )
    parser.add_argument("--tinyface", type=Path, nargs="+", default=[], metavar="FOLDER", help="TinyFace's test set")
    parser.add_argument("--out", type=Path, help="folder of the results (default: report in the run folder)")
    parser.add_argument("--report", action="store_true", help="write report.html and report.md beside them")
    parser.add_argument(
        "--embeddings", type=Path, metavar="FOLDER", help="keep the embeddings of IJB and TinyFace there, to go on from"
    )
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
    if not (options.sets or options.ijb or options.tinyface):
        return "a benchmark is required: --sets, --ijb or --tinyface"
    if (options.network is None) == (options.teacher is None):
        return "name one network: a checkpoint, a file, a CVLface network, or --teacher RECIPE"
    if _many(options) and options.teacher is not None:
        return "--all and --suffix are for a folder of networks, not for --teacher"
    if options.best_by is not None and not _many(options):
        return "--best-by chooses among several networks: add --all"
    wrong = [suffix for suffix in options.suffix or () if suffix.lower() not in NAMED_SUFFIXES]
    if wrong:
        return f"--suffix {' '.join(wrong)}: weights files end in {' '.join(NAMED_SUFFIXES)}"
    given = [name for name in (*TEACHER_OPTIONS, "image_size") if getattr(options, name) is not None]
    if not given:
        return None
    listed = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if options.teacher is not None:
        return f"{listed}: {options.teacher} says this of its teacher itself"
    if _many(options):
        of_checkpoints = not options.suffix and (Path(options.network) / "checkpoints").is_dir()
    else:
        of_checkpoints = source_kind(options.network, options.revision) == "checkpoint"
    if of_checkpoints:
        return f"{listed}: a checkpoint says this itself, and {options.network} is taken for one"
    return None


def _many(options: argparse.Namespace) -> bool:
    return bool(options.all or options.suffix)


def _source(options: argparse.Namespace, network: str | None) -> Path | TeacherSource:
    """A network as the command line names it, with the options that go with it.

    Raises:
        ValueError: options or a recipe that name no network.
    """
    if options.teacher is not None:
        return teacher_of_recipe(options.teacher)
    assert network is not None, "one network or --teacher was asked for"
    kind = source_kind(network, options.revision)
    if kind == "checkpoint":
        return Path(network)
    from adadistill.core.teachers import TeacherConfig

    fields: dict[str, Any] = {
        name: getattr(options, name) for name in TEACHER_OPTIONS if getattr(options, name) is not None
    }
    fields |= {name: tuple(fields[name]) for name in ("mean", "std") if name in fields}
    if kind == "onnx" and not {"color", "mean", "std"} <= fields.keys():
        missing = ", ".join(f"--{name}" for name in ("color", "mean", "std") if name not in fields)
        raise ValueError(
            f"{network}: an ONNX file does not say how it wants its images; {missing} missing. insightface's "
            "files take --color rgb --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
        )
    try:
        config = TeacherConfig(**{**fields, kind: network})
    except ValueError as error:
        listed = "\n  ".join(f"teacher.{problem}" for problem in str(error).splitlines())
        raise ValueError(f"{network}:\n  {listed}") from None
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


if __name__ == "__main__":
    sys.exit(main())
