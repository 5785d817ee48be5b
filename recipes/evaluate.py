"""Entry point: score a network, or every one in a folder, on benchmarks.

    adadistill evaluate runs/casia/checkpoints/step-00012000 --sets data/lfw.bin data/cfp_fp.bin
    adadistill evaluate r50.onnx --color rgb --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --sets data/lfw.bin
    adadistill evaluate backbone.pth --sets data/lfw.bin        (also .pt .ckpt .safetensors, or cvlface_ir50)
    adadistill evaluate --teacher recipe.yaml --sets data/lfw.bin
    adadistill evaluate runs/casia --all --sets data/lfw.bin             (every checkpoint; goes on after a kill)
    adadistill evaluate weights --suffix .pth --sets data/lfw.bin --best-by verification.lfw.Accuracy-Flip
    torchrun --standalone --nproc_per_node=2 -m adadistill.recipes.evaluate runs/casia --sets data/lfw.bin

Prints tables and writes the same numbers as JSON (with protocol, hash of the weights, colour order, and why a number
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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.core.scoring.evaluation_config import KINDS, KINDS_BY_KEY
from adadistill.core.scoring.tables import score_table
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.report import print_report
from adadistill.recipes.scoring.benchmark_pass import PreparedNetwork, Request
from adadistill.recipes.scoring.files import Evaluation, write_evaluation
from adadistill.recipes.scoring.scored_network import (
    NAMED_SUFFIXES,
    TeacherSource,
    load_scored,
    source_kind,
    teacher_of_recipe,
)

if TYPE_CHECKING:  # imported when work begins, so that --help answers at once
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
    names = ("out", "batch_size", "device", "precision", "far", "report", "embeddings")
    settings = {name: getattr(options, name) for name in names}
    request = Request(paths={key: getattr(options, key) for key in KINDS_BY_KEY}, **settings)
    try:
        if not _many(options):
            evaluate_network(_source(options, options.network), request)
            return 0
        from adadistill.recipes.scoring.folder import evaluate_folder

        scored_all = evaluate_folder(
            Path(options.network),
            request,
            suffixes=tuple(options.suffix or ()),
            source=lambda path: _source(options, path),
            best_by=options.best_by,
        )
        return 0 if scored_all else 1
    except ValueError as error:
        if options.teacher is None:  # then no recipe is about, whose keys an error might name
            error.args = (_in_options(str(error)),)
        raise


def evaluate_network(source: Path | TeacherSource, request: Request) -> Evaluation:
    """Score a network, print its tables, write the reports; under torchrun the ranks share the images.

    Args:
        source: a checkpoint directory, a run folder, whose newest valid checkpoint is taken, or another network.

    Returns:
        What was written as `verification-<name>.json` and `.csv`, on every rank.

    Raises:
        CheckpointError, TeacherError, WeightFileError, VerificationSetError, ImageDecodeError, LaunchError, OSError:
            before anything is computed.
        NonFiniteEmbeddingsError: the network gives NaN or infinity.
    """
    from adadistill.core.distributed import distributed_session

    with distributed_session(request.device) as ranks:
        scored = load_scored(source, ranks)
        folder = request.out or scored.folder
        if ranks.is_main:
            request.check_places(folder)
        prepared = PreparedNetwork.of(scored, request, ranks)
        benchmarks = request.open_benchmarks(scored.image_size, ranks)
        evaluation = prepared.evaluation(scored.name, [prepared.score(one) for one in benchmarks])
        if ranks.is_main:
            json_file, csv_file = write_evaluation(folder, evaluation)
            if scored.announcement is not None:
                print(scored.announcement)
            print(results_text(evaluation.results))
            print(f"written to {json_file} and {csv_file.name}")
            if request.report:
                print_report(folder)
    return evaluation


def results_text(results: Sequence[BenchmarkResult]) -> str:
    """The tables of all results, kind by kind."""
    tables: list[str] = []
    for kind in KINDS.values():
        own = [result for result in results if result.kind == kind.name]
        if kind.table is None:
            tables += map(score_table, own)
        elif own:
            tables.append(kind.table(own))
    return "\n".join(tables)


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
    for key, kind in KINDS_BY_KEY.items():
        parser.add_argument(
            f"--{key.replace('_', '-')}", type=Path, nargs="+", default=[], metavar=kind.metavar, help=kind.help
        )
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
    if not any(getattr(options, key) for key in KINDS_BY_KEY):
        *others, last = (f"--{key.replace('_', '-')}" for key in KINDS_BY_KEY)
        return f"a benchmark is required: {', '.join(others)} or {last}"
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


if __name__ == "__main__":
    sys.exit(main())
