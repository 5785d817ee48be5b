"""`make demo`: from data to report on synthetic faces, in minutes on two CPU cores.

Draws people, trains a teacher on many of them, and then, for each seed, a small student on few of them, once without
and once with the teacher: same network, same images, same schedule and number of steps. Every network is scored on the
same pairs of strangers, an untrained student too. The gain over the student without a teacher is printed as measured.

    adadistill demo [--out runs/demo] [--seeds 3]

Exit codes: 0 done, and the distilled student is above the untrained one by ten standard errors; 1 it is not; 2 the
folder holds another run or the launch is wrong; 143 stopped by SIGTERM (130 by SIGINT).
"""

from __future__ import annotations

if __name__ == "__main__":  # a signal may come before torch is imported, which takes seconds
    from adadistill.recipes.entry_point import begin_program

    begin_program()

import argparse
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from adadistill.core.backbones import build_backbone
from adadistill.core.distributed import Ranks
from adadistill.core.host_memory import keep_freed_memory
from adadistill.core.recipe import Recipe, load_recipe
from adadistill.core.scoring.benchmark import Benchmark, ScoringTerms
from adadistill.core.scoring.embedding import Forward
from adadistill.core.scoring.result import BenchmarkResult
from adadistill.core.scoring.verification import open_verification
from adadistill.core.seeding import derive_seed
from adadistill.core.training.run import run_training
from adadistill.loaders.synthetic.synthetic_faces import (
    SyntheticFacesConfig,
    write_synthetic_pairs,
    write_synthetic_records,
)
from adadistill.recipes.entry_point import entry_point
from adadistill.recipes.outputs import will_write_folder

IMAGE_SIZE = 32
PAIRS = 3000
TEACHER_FACES = SyntheticFacesConfig(image_size=IMAGE_SIZE, seed=7, identities=800, images_per_identity=20)
STUDENT_FACES = SyntheticFacesConfig(image_size=IMAGE_SIZE, seed=7, identities=100, images_per_identity=10)
"""A hundred of the teacher's people, half as many images of each: a student sees less than its teacher did."""

STANDARD_ERRORS = 10.0

_ROLES = {
    "untrained": "untrained student",
    "no_teacher": "student without a teacher",
    "distilled": "distilled student",
    "teacher": "teacher",
}


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy of one kind of network over seeds."""

    accuracies: tuple[float, ...]
    """Ten-fold accuracy of each seed, in [0, 1]."""
    pairs: int

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def standard_error(self) -> float:
        """Of the mean: from seed to seed, and from drawing the pairs, which all seeds share."""
        seeds = statistics.variance(self.accuracies) / len(self.accuracies) if len(self.accuracies) > 1 else 0.0
        return math.sqrt(seeds + self.mean * (1.0 - self.mean) / self.pairs)


@entry_point("demo", after_stop="a demo starts anew: remove its folder")
def main(argv: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="adadistill demo", description="From data to report on synthetic faces.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default: 3)")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replace values of all three recipes")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    out: Path = arguments.out
    will_write_folder(out, remedy="give another --out")
    if out.exists() and any(out.iterdir()):
        print(f"demo: {out} is not empty; remove it or give another --out", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(asctime)s    %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    keep_freed_memory()
    started = time.monotonic()
    scores = run(out, seeds=arguments.seeds, overrides=arguments.overrides)
    passed = report(out, scores, seconds=time.monotonic() - started)
    return 0 if passed else 1


def run(out: Path, *, seeds: int, overrides: Sequence[str] = ()) -> dict[str, Score]:
    """Make the faces, train and score everything; scores by role."""
    faces = out / "faces"
    with _stage(
        f"drawing {_count(TEACHER_FACES)} faces for the teacher, {_count(STUDENT_FACES)} for students, {PAIRS} pairs"
    ):
        write_synthetic_records(faces / "teacher", TEACHER_FACES)
        write_synthetic_records(faces / "student", STUDENT_FACES)
        write_synthetic_pairs(faces / "pairs.bin", STUDENT_FACES, pairs=PAIRS)
    with _stage("training the teacher (narrow IR-18, no teacher of its own)"):
        teacher = _train("demo_teacher", out, "teacher", seed=0, overrides=overrides)
    pairs = open_verification(faces / "pairs.bin", ScoringTerms(image_size=IMAGE_SIZE, ranks=Ranks(), intervals=False))
    accuracies: dict[str, list[float]] = {role: [] for role in _ROLES}
    accuracies["teacher"].append(_accuracy(teacher))
    for seed in range(seeds):
        with _stage(f"seed {seed}: student without a teacher"):
            accuracies["no_teacher"].append(
                _accuracy(_train("demo_no_teacher", out, f"no_teacher-seed{seed}", seed=seed, overrides=overrides))
            )
        with _stage(f"seed {seed}: distilled student"):
            accuracies["distilled"].append(
                _accuracy(_train("demo_distilled", out, f"distilled-seed{seed}", seed=seed, overrides=overrides))
            )
        accuracies["untrained"].append(_accuracy(_score_untrained(seed, pairs, out, overrides)))
    return {role: Score(tuple(values), PAIRS) for role, values in accuracies.items()}


def report(out: Path, scores: dict[str, Score], *, seconds: float) -> bool:
    """Print the table, write it as JSON, and say whether the distilled student is clearly above the untrained one."""
    print(f"\n{'':<28}{'accuracy':>10}   95 % interval     seeds   (ten-fold, {PAIRS} pairs of strangers)")
    for role, title in _ROLES.items():
        score = scores[role]
        low, high = (score.mean + side * 1.96 * score.standard_error for side in (-1, 1))
        print(f"{title:<28}{score.mean:>10.2%}   {low:.2%} - {high:.2%}   {len(score.accuracies)}")
    distilled, alone = scores["distilled"], scores["no_teacher"]
    gains = [d - b for d, b in zip(distilled.accuracies, alone.accuracies, strict=True)]
    above, above_untrained = (_standard_errors(distilled, other) for other in (alone, scores["untrained"]))
    shown = ", ".join(f"{gain:+.2%}" for gain in gains)
    print(f"\ngain of distilling over no teacher: {statistics.fmean(gains):+.2%} (by seed: {shown})")
    print(f"that is {above:.1f} standard errors of the difference, seeds and pairs counted")
    print(f"distilled above untrained by {above_untrained:.1f} standard errors ({STANDARD_ERRORS:g} are asked for)")
    print(f"{seconds:.0f} s in all; every run, its checkpoints and metrics: {out}")
    values = {role: {**asdict(score), "standard_error": score.standard_error} for role, score in scores.items()}
    summary = {
        "scores": values,
        "gain_by_seed": gains,
        "standard_errors_above_no_teacher": above,
        "standard_errors_above_untrained": above_untrained,
        "seconds": seconds,
    }
    (out / "report").mkdir(exist_ok=True)
    (out / "report" / "demo.json").write_text(json.dumps(summary, indent=1) + "\n")
    return above_untrained >= STANDARD_ERRORS


def _standard_errors(score: Score, other: Score) -> float:
    """How far one score is above another, in standard errors of the difference of two independent means."""
    return (score.mean - other.mean) / math.hypot(score.standard_error, other.standard_error)


def _train(name: str, out: Path, folder: str, *, seed: int, overrides: Sequence[str]) -> BenchmarkResult:
    recipe = _recipe(name, out, seed, overrides)
    result = run_training(recipe, out / folder, ranks=Ranks())
    (scored,) = result.evaluations.values()
    print(f"    {result.images_per_s:.0f} images/s, accuracy {_accuracy(scored):.2%}", flush=True)
    return scored


def _recipe(name: str, out: Path, seed: int, overrides: Sequence[str]) -> Recipe:
    """The shipped recipe with the demo's own folder and seed."""
    records = out / "faces" / ("teacher" if name == "demo_teacher" else "student") / "train.rec"
    own = [
        f"data.records={json.dumps(str(records))}",
        f"evaluation.sets=[{json.dumps(str(out / 'faces' / 'pairs.bin'))}]",
    ]
    if name == "demo_distilled":
        own.append(f"teacher.checkpoint={json.dumps(str(out / 'teacher'))}")
    return load_recipe(name, [*own, f"seed={seed}", *overrides])


def _score_untrained(seed: int, pairs: Benchmark, out: Path, overrides: Sequence[str]) -> BenchmarkResult:
    """The distilled student as it was before its first step."""
    recipe = _recipe("demo_distilled", out, seed, overrides)
    network = build_backbone(recipe.student, IMAGE_SIZE, generator=derive_seed(recipe.seed, "student"))
    return pairs.score(network, Forward())


def _accuracy(result: BenchmarkResult) -> float:
    accuracy = result[result.headline]
    if accuracy.value is None:
        raise RuntimeError(f"the demo's {result.name} has no accuracy: {accuracy.note}")
    return accuracy.value


def _count(config: SyntheticFacesConfig) -> str:
    return f"{config.identities * config.images_per_identity:,}"


@contextmanager
def _stage(title: str) -> Iterator[None]:
    print(title, flush=True)
    started = time.monotonic()
    yield
    print(f"    {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
