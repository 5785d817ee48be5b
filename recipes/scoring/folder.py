"""Every network of a folder on the same benchmarks: each scored once, compared in one table, the best one named.

A network's JSON file is written after each benchmark, and what such a file holds of the same network and the same data
(by hash) with the same settings is not done again: a launch that was killed goes on where it was, changed data or a
changed network is scored anew. A network that cannot be loaded, or gives NaN, is listed with its reason, the others go
on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.loaders.folders import entries_of
from adadistill.recipes.report import print_report
from adadistill.recipes.scoring.benchmark_pass import Forward, score_benchmark, settings_of
from adadistill.recipes.scoring.files import (
    Done,
    Evaluation,
    EvaluationFileError,
    check_places,
    json_path,
    read_evaluation,
    same_network,
    write_evaluation,
    write_whole,
)
from adadistill.recipes.scoring.scored_network import WEIGHT_SUFFIXES, ScoredNetwork, TeacherSource, load_scored
from adadistill.recipes.scoring.standing import SUMMARY, Standing, standing_json, standing_table

if TYPE_CHECKING:
    from adadistill.core.distributed import Ranks
    from adadistill.core.precision import PrecisionName
    from adadistill.core.scoring.suite import Benchmark, BenchmarkPaths

_NO_MERIT = (".Accuracy-Std", ".Threshold", ".XNorm", "_thresh_at_fpr_")
"""In keys of scores that say nothing of how good a network is."""


def evaluate_folder(
    folder: Path,
    sets: Sequence[Path],
    *,
    suffixes: tuple[str, ...] = (),
    source: Callable[[str], Path | TeacherSource] = Path,
    best_by: str | None = None,
    ijb: Sequence[Path] = (),
    tinyface: Sequence[Path] = (),
    out: Path | None = None,
    batch_size: int = 256,
    device: str | None = None,
    precision: PrecisionName = "float32",
    far: float = 1e-3,
    report: bool = False,
    embeddings: Path | None = None,
) -> bool:
    """Score every network of a folder that is not scored yet, print the table; whether all could be scored.

    Args:
        folder: a run folder or its `checkpoints`, or one of weights files.
        suffixes: of the files to take; none for checkpoints, and for all weights files where there are no checkpoints.
        source: path -> what is loaded from it; adds what files do not say themselves (colour order of an ONNX file).
        best_by: key of a score.
        out: folder of the results; default: `report` in the run folder, or in the folder itself.
        sets, ijb, tinyface, batch_size, device, precision, far, report, embeddings: as for `evaluate.run`.

    Raises:
        ValueError, OSError: no network, a key of none of the benchmarks, or a benchmark that cannot be used, before
            anything is computed; a benchmark that has no such score, when all are done and kept.
    """
    from adadistill.core.distributed import distributed_session
    from adadistill.core.scoring.suite import BenchmarkPaths

    networks = networks_of(folder, suffixes)
    paths = BenchmarkPaths(sets=tuple(sets), ijb=tuple(ijb), tinyface=tuple(tinyface), far=far)
    out = out or (folder.parent if folder.name == "checkpoints" else folder) / "report"
    with distributed_session(device) as ranks:
        if ranks.is_main:
            check_places(out, embeddings)
        queue = _Queue(paths, out, precision, batch_size, best_by, ranks, embeddings)
        for name, path in networks.items():
            queue.run(name, path, source)
        standing = Standing(best_by=best_by, evaluations=tuple(queue.evaluations), failures=queue.failures)
        if ranks.is_main:
            _check_best_by(standing)
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / SUMMARY, json.dumps(standing_json(standing), indent=1, allow_nan=False) + "\n")
            print(standing_table(standing))
            print(f"written to {out}")
            if report and standing.evaluations:
                print_report(out)
    return not queue.failures


def networks_of(folder: Path, suffixes: Sequence[str] = ()) -> dict[str, Path]:
    """Networks of a folder by the name that their results get: checkpoints by rising step, or files by name.

    Raises:
        ValueError: there is none.
    """
    from adadistill.core.checkpoints.files import list_checkpoints

    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; --all and --suffix are for a run folder, or a folder of weights files"
        )
    checkpoints = [] if suffixes else [path for path in list_checkpoints(folder) if ".replaced" not in path.name]
    if checkpoints:
        return {path.name: path for path in checkpoints}
    wanted = tuple(suffix.lower() for suffix in suffixes) or (*WEIGHT_SUFFIXES, ".onnx")
    files = [
        folder / entry.name
        for entry in entries_of(folder)[0]
        if entry.name.lower().endswith(wanted) and entry.is_file()
    ]
    if not files:
        raise ValueError(f"{folder} holds no checkpoint and no file that ends in {' '.join(wanted)}")
    stems = [path.stem for path in files]
    return {path.stem if stems.count(path.stem) == 1 else path.name: path for path in files}


class _Queue:
    """Scores one network after the other; all ranks go through it together."""

    def __init__(
        self,
        paths: BenchmarkPaths,
        out: Path,
        precision: PrecisionName,
        batch_size: int,
        best_by: str | None,
        ranks: Ranks,
        embeddings: Path | None,
    ) -> None:
        self.evaluations: list[Evaluation] = []
        self.failures: dict[str, str] = {}
        self._paths, self._out, self._ranks = paths, out, ranks
        self._precision, self._batch_size, self._best_by = precision, batch_size, best_by
        self._embeddings = embeddings
        self._opened: dict[int, tuple[Benchmark, ...]] = {}

    def run(self, name: str, path: Path, source: Callable[[str], Path | TeacherSource]) -> None:
        """Score a network, or note why that cannot be.

        Raises:
            ValueError, OSError: a benchmark cannot be used, or `best_by` is of none of them.
        """
        from adadistill.core.checkpoints import CheckpointError
        from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError

        try:
            scored = load_scored(source(str(path)), self._ranks)
        except (CheckpointError, OSError, ValueError) as error:
            self._fail(name, error)
            return
        benchmarks = self._benchmarks(scored.image_size)
        try:
            self.evaluations.append(self._score(name, scored, benchmarks))
        except NonFiniteEmbeddingsError as error:
            self._fail(name, error)

    def _score(self, name: str, scored: ScoredNetwork, benchmarks: Sequence[Benchmark]) -> Evaluation:
        from adadistill.core.distributed import broadcast_text

        forward = Forward.prepare(scored, self._precision, self._batch_size, self._ranks, self._embeddings)
        found = {(one.result.kind, one.result.name): one for one in self._stored(name, scored)}  # on rank 0
        missing = [
            index
            for index, one in enumerate(benchmarks)
            if not _is_of(found.get((one.kind, one.name)), one, settings_of(one, forward))
        ]
        missing = json.loads(broadcast_text(json.dumps(missing), self._ranks))  # no rank may wait for another in vain
        if self._ranks.is_main:
            told = f"{len(missing)} of {len(benchmarks)} benchmarks to do" if missing else "done before"
            print(f"{name}: {told}", file=sys.stderr, flush=True)
        for index in missing:
            done, _ = score_benchmark(scored, benchmarks[index], forward)
            found[done.result.kind, done.result.name] = done
            if self._ranks.is_main:
                write_evaluation(self._out, _evaluation(name, scored, forward, found.values()))
        asked = [found[one.kind, one.name] for one in benchmarks if (one.kind, one.name) in found]
        return _evaluation(name, scored, forward, asked)

    def _stored(self, name: str, scored: ScoredNetwork) -> tuple[Done, ...]:
        """What the network's file holds of the same network, on rank 0; nothing on others."""
        path = json_path(self._out, name)
        if not self._ranks.is_main or not path.exists():
            return ()
        try:
            earlier = read_evaluation(path)
        except EvaluationFileError as error:
            print(f"{name}: scored anew: {error}", file=sys.stderr)
            return ()
        return earlier.done if same_network(earlier.facts, scored.facts) else ()

    def _benchmarks(self, image_size: int) -> tuple[Benchmark, ...]:
        """Opened once for each image size."""
        from adadistill.core.scoring.suite import open_benchmarks

        if image_size not in self._opened:
            opened = open_benchmarks(self._paths, image_size, self._ranks)
            self._check_best_by(opened)
            self._opened[image_size] = opened
        return self._opened[image_size]

    def _check_best_by(self, benchmarks: Sequence[Benchmark]) -> None:
        key = self._best_by
        if key is None:
            return
        if any(part in key for part in _NO_MERIT):
            raise ValueError(f"--best-by {key}: says nothing of how good a network is")
        if not any(key.startswith(f"{one.kind}.{one.name}.") for one in benchmarks):
            names = ", ".join(f"{one.kind}.{one.name}." for one in benchmarks)
            raise ValueError(f"--best-by {key}: keys of these benchmarks begin with {names}")

    def _fail(self, name: str, error: Exception) -> None:
        self.failures[name] = f"{type(error).__name__}: {error}"
        if self._ranks.is_main:
            print(f"{name}: {self.failures[name]}", file=sys.stderr, flush=True)


def _evaluation(name: str, scored: ScoredNetwork, forward: Forward, done: Iterable[Done]) -> Evaluation:
    return Evaluation(name=name, facts=scored.facts, setting=forward.setting(), done=tuple(done))


def _is_of(done: Done | None, benchmark: Benchmark, settings: Mapping[str, Any]) -> bool:
    """Whether a stored result is what the benchmark would give again."""
    if done is None or not done.result.data_sha256:
        return False
    # Through JSON, so that settings just made equal those that were read back.
    return done.result.data_sha256 == benchmark.data_sha256 and done.settings == json.loads(json.dumps(settings))


def _check_best_by(standing: Standing) -> None:
    if standing.best_by is None or not standing.evaluations or standing.best is not None:
        return
    keys = [score.key for result in standing.evaluations[0].results for score in result.scores]
    if standing.best_by not in keys:
        raise ValueError(f"--best-by {standing.best_by}: no such score; there are {', '.join(keys)}")
