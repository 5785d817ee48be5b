"""Every network of a folder on the same benchmarks: each scored once, compared in one table, the best one named.

A network's JSON file is written after each benchmark, and what such a file holds of the same network and the same data
(by hash) with the same settings is not done again: a launch that was killed goes on where it was, changed data or a
changed network is scored anew. A network that cannot be loaded, or gives NaN, is listed with its reason, the others go
on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adadistill.core.scoring.evaluation_config import kind_of
from adadistill.loaders.folders import entries_of
from adadistill.recipes.report import print_report
from adadistill.recipes.scoring.benchmark_pass import PreparedNetwork, Request
from adadistill.recipes.scoring.files import (
    Done,
    Evaluation,
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
    from adadistill.core.scoring.benchmark import Benchmark


def evaluate_folder(
    folder: Path,
    request: Request,
    *,
    suffixes: tuple[str, ...] = (),
    source: Callable[[str], Path | TeacherSource] = Path,
    best_by: str | None = None,
) -> bool:
    """Score every network of a folder that is not scored yet, print the table; whether all could be scored.

    Args:
        folder: a run folder or its `checkpoints`, or one of weights files.
        suffixes: of the files to take; none for checkpoints, and for all weights files where there are no checkpoints.
        source: path -> what is loaded from it; adds what files do not say themselves (colour order of an ONNX file).
        best_by: key of a score; None compares by the mean of the headlines.

    Raises:
        ValueError, OSError: no network, a key of none of the benchmarks, or a benchmark that cannot be used, before
            anything is computed; a benchmark that has no such score, when all are done and kept.
    """
    from adadistill.core.distributed import distributed_session

    networks = networks_of(folder, suffixes)
    out = request.out or (folder.parent if folder.name == "checkpoints" else folder) / "report"
    with distributed_session(request.device) as ranks:
        if ranks.is_main:
            request.check_places(out)
        queue = _Queue(request=request, out=out, ranks=ranks, best_by=best_by)
        for name, path in networks.items():
            queue.run(name, path, source)
        standing = Standing(best_by=best_by, evaluations=tuple(queue.evaluations), failures=queue.failures)
        if ranks.is_main:
            _check_chosen(standing)
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / SUMMARY, json.dumps(standing_json(standing), indent=1, allow_nan=False) + "\n")
            print(standing_table(standing))
            print(f"written to {out}")
            if request.report and standing.evaluations:
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


@dataclass(kw_only=True, slots=True)
class _Queue:
    """Scores one network after the other; all ranks go through it together."""

    request: Request
    out: Path
    ranks: Ranks
    best_by: str | None
    evaluations: list[Evaluation] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    opened: dict[int, tuple[Benchmark, ...]] = field(default_factory=dict)
    """By image size."""

    def run(self, name: str, path: Path, source: Callable[[str], Path | TeacherSource]) -> None:
        """Score a network, or note why that cannot be.

        Raises:
            ValueError, OSError: a benchmark cannot be used, or `best_by` is of none of them.
        """
        from adadistill.core.checkpoints import CheckpointError
        from adadistill.core.scoring.pair_metrics import NonFiniteEmbeddingsError

        try:
            scored = load_scored(source(str(path)), self.ranks)
        except (CheckpointError, OSError, ValueError) as error:
            self._fail(name, error)
            return
        if scored.image_size not in self.opened:
            opened = self.request.open_benchmarks(scored.image_size, self.ranks)
            _check_best_by(self.best_by, opened)
            self.opened[scored.image_size] = opened
        try:
            self.evaluations.append(self._score(name, scored, self.opened[scored.image_size]))
        except NonFiniteEmbeddingsError as error:
            self._fail(name, error)

    def _score(self, name: str, scored: ScoredNetwork, benchmarks: Sequence[Benchmark]) -> Evaluation:
        from adadistill.core.distributed import broadcast_text

        prepared = PreparedNetwork.of(scored, self.request, self.ranks)
        found = {(one.result.kind, one.result.name): one for one in self._stored(name, scored)}  # on rank 0
        keys = [(one.kind.name, one.name) for one in benchmarks]
        missing = [
            index
            for index, (key, one) in enumerate(zip(keys, benchmarks, strict=True))
            if not _is_of(found.get(key), one.data_sha256, prepared.settings_of(one))
        ]
        missing = json.loads(broadcast_text(json.dumps(missing), self.ranks))  # no rank may wait for another in vain
        if self.ranks.is_main:
            told = f"{len(missing)} of {len(benchmarks)} benchmarks to do" if missing else "done before"
            print(f"{name}: {told}", file=sys.stderr, flush=True)
        for index in missing:
            found[keys[index]] = prepared.score(benchmarks[index])
            if self.ranks.is_main:
                write_evaluation(self.out, prepared.evaluation(name, found.values()))
        return prepared.evaluation(name, [found[key] for key in keys if key in found])

    def _stored(self, name: str, scored: ScoredNetwork) -> tuple[Done, ...]:
        """What the network's file holds of the same network, on rank 0; nothing on others."""
        from adadistill.core.scoring.stored_result import StoredResultError

        path = json_path(self.out, name)
        if not self.ranks.is_main or not path.exists():
            return ()
        try:
            earlier = read_evaluation(path)
        except StoredResultError as error:
            print(f"{name}: scored anew: {error}", file=sys.stderr)
            return ()
        return earlier.done if same_network(earlier.facts, scored.facts) else ()

    def _fail(self, name: str, error: Exception) -> None:
        self.failures[name] = f"{type(error).__name__}: {error}"
        if self.ranks.is_main:
            print(f"{name}: {self.failures[name]}", file=sys.stderr, flush=True)


def _is_of(done: Done | None, data_sha256: str, settings: Mapping[str, object]) -> bool:
    """Whether a stored result is what the benchmark would give again."""
    if done is None or not done.result.data_sha256:
        return False
    # Through JSON, so that settings just made equal those that were read back.
    return done.result.data_sha256 == data_sha256 and done.settings == json.loads(json.dumps(settings))


def _check_best_by(key: str | None, benchmarks: Sequence[Benchmark]) -> None:
    """Refuse a key that no benchmark can have, before anything is embedded."""
    if key is None:
        return
    kind = kind_of(key)
    if kind is not None and any(part in key for part in kind.without_merit):
        raise ValueError(f"--best-by {key}: says nothing of how good a network is")
    beginnings = [f"{one.kind.name}.{one.name}." for one in benchmarks]
    if not key.startswith(tuple(beginnings)):
        raise ValueError(f"--best-by {key}: keys of these benchmarks begin with {', '.join(beginnings)}")


def _check_chosen(standing: Standing) -> None:
    """Refuse a key that turns out to be of no score, once all scores are kept."""
    if standing.best_by is None or not standing.evaluations or standing.best is not None:
        return
    keys = [score.key for result in standing.evaluations[0].results for score in result.scores]
    if standing.best_by not in keys:
        raise ValueError(f"--best-by {standing.best_by}: no such score; there are {', '.join(keys)}")
