"""What a report says of evaluations and of the run they belong to, as a document to be written as HTML or Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.core.report.charts import MOST_LINES
from adadistill.core.report.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Figure,
    Figures,
    Heading,
    Number,
    Paragraph,
    Picture,
    Pictures,
    Table,
)
from adadistill.core.scoring.result import BenchmarkResult, Curve, Score
from adadistill.core.training.metrics_log import read_metrics
from adadistill.core.training.run_folder import RunFolder
from adadistill.recipes.scoring.figures import logged_scores, roc_and_det, score_histogram, training_figures
from adadistill.recipes.scoring.files import Evaluation, read_evaluations
from adadistill.recipes.scoring.published_comparison import published_blocks
from adadistill.recipes.scoring.standing import Standing, read_best_by

if TYPE_CHECKING:
    from adadistill.loaders.evaluation_sets.verification_pairs import VerificationPairs

_MOST_HISTOGRAMS = 4
_MOST_COLUMNS = 16
_FACE_PIXELS = 56
_POOLING = re.compile(r"Norm:(?:True|False)_Det:(?:True|False)")
_READING = (
    "A number belongs to its protocol. Accuracy is the ten-fold number of papers: both versions of an image, as "
    "stored and mirrored, are embedded and their raw embeddings summed; the threshold for each tenth of the pairs is "
    "chosen on the other nine.",
    "Strict rates keep the false-accept rate at or under its target, over all pairs, and are withheld where a set has "
    "too few different pairs to know. 10-fold rates interpolate a threshold and may meet more false accepts than their "
    "target. The rates printed for IJB take the point of the curve nearest to the target, on either side of it.",
    "IJB templates can be pooled with embedding norms, detector scores, both or neither; the same embeddings differ by "
    "up to 0.8 points. Numbers of different pooling modes are never set beside each other here.",
    "One network's accuracy over P pairs has a standard error of about sqrt(p (1 - p) / P): 0.27 points for 95.5 % of "
    "6,000 pairs. A smaller difference between two networks may be chance; so may be what the best of many "
    "checkpoints gains, when it is chosen on the set that it is reported on.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Everything that a report is made of."""

    title: str
    results: Path
    """Folder of the evaluations."""
    standing: Standing
    passed_over: Sequence[str]
    """Files that are no evaluations, with the reason."""
    metrics: Sequence[Mapping[str, Any]]
    """Lines of the run's `metrics.jsonl`; none without a run."""
    shown: Mapping[str, VerificationPairs] = field(default_factory=dict)
    """Sets whose faces may be shown, by the hash of their data."""


@dataclass(frozen=True, slots=True)
class _Group:
    """One benchmark, the same data, and every network that was scored on it."""

    title: str
    results: Mapping[str, BenchmarkResult]
    """By network."""
    best: str | None
    """Name of the best network of all, which need not be in this group."""

    @property
    def shown(self) -> tuple[str, BenchmarkResult]:
        """The network that is looked at alone: the best one where it was scored here, else the first."""
        name = self.best if self.best in self.results else next(iter(self.results))
        return str(name), self.results[str(name)]

    @property
    def first(self) -> BenchmarkResult:
        return next(iter(self.results.values()))


def gather(folder: Path, shown_sets: Sequence[Path] = ()) -> Material:
    """Read a run folder, or a folder of evaluations (which may be a run's `report`).

    Args:
        shown_sets: verification sets whose worst pairs will be embedded as images.

    Raises:
        ValueError: there is nothing to report, or a set to show was not scored here.
        OSError: a set cannot be read.
    """
    from adadistill.loaders.evaluation_sets.verification_pairs import read_verification_set

    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a run folder, or one that adadistill evaluate wrote to")
    is_run = RunFolder(folder).metrics.exists() or RunFolder(folder).recipe.exists()
    results = RunFolder(folder).report if is_run else folder
    run = RunFolder(folder if is_run else folder.resolve().parent)
    belongs = is_run or (folder.resolve().name == "report" and run.metrics.exists())
    metrics = list(read_metrics(run.metrics)) if belongs else []
    evaluations, passed_over = read_evaluations(results) if results.is_dir() else ([], [])
    if not evaluations and not metrics:
        told = "".join(f"\n  {text}" for text in passed_over)
        raise ValueError(f"{folder} holds neither evaluations nor a training run; run adadistill evaluate first{told}")
    hashes = {result.data_sha256 for one in evaluations for result in one.results}
    shown = {}
    for path in shown_sets:
        pairs = read_verification_set(path)
        if pairs.sha256 not in hashes:
            raise ValueError(f"--show-images {path}: no network here was scored on this set (its sha256 is another)")
        shown[pairs.sha256] = pairs
    name = run.path.resolve().name if belongs else folder.resolve().name
    return Material(
        title=f"Evaluation of {name}",
        results=results,
        standing=Standing(best_by=read_best_by(results), evaluations=tuple(evaluations)),
        passed_over=passed_over,
        metrics=metrics,
        shown=shown,
    )


def report_document(material: Material) -> Document:
    """The whole report."""
    standing, groups = material.standing, _groups(material.standing)
    blocks: list[Block] = []
    if standing.evaluations:
        blocks += [Heading(2, "Summary"), *_summary(standing, groups)]
        blocks += [Heading(2, "What was evaluated"), *_subjects(material, groups)]
        blocks += [Heading(2, "Scores"), *(block for group in groups for block in _scores(group))]
        blocks += [Heading(2, "Curves"), *(block for group in groups for block in _curves(group))]
        blocks += [Heading(2, "Worst cases"), *_worst_cases(groups, material.shown)]
        blocks += [
            Heading(2, "Published results"),
            *published_blocks([(group.title, *group.shown) for group in groups]),
        ]
    elif material.passed_over:
        blocks.append(Bullets(material.passed_over))
    if material.metrics:
        blocks += [Heading(2, "Training"), *_training(material.metrics)]
    blocks += [Heading(2, "How to read this"), Bullets(_READING)]
    return Document(title=material.title, blocks=tuple(blocks))


def _summary(standing: Standing, groups: Sequence[_Group]) -> list[Block]:
    chosen = standing.best_by or "mean of the headline scores"
    best = standing.best
    rows: list[Sequence[Cell]] = []
    for one in standing.evaluations:
        merit, chosen_by = standing.merit(one), standing.best_by and one.score(standing.best_by)
        cells: list[Cell] = [one.name]
        for group in groups:
            result = group.results.get(one.name)
            cells.append(None if result is None else _number(result[result.headline]))
        mean = None if merit is None else Number(merit, f"{100.0 * merit:.2f}")
        rows.append([*cells, _number(chosen_by) if chosen_by else mean])
    heads = ["Network", *(f"{group.title}: {_head(group.first[group.first.headline])}" for group in groups)]
    table = Table(
        caption=f"Headline scores; the last column is what networks are compared by ({chosen})",
        heads=[*heads, standing.best_by or "mean %"],
        rows=rows,
        strong=frozenset(index for index, one in enumerate(standing.evaluations) if one is best),
    )
    if best is None or len(standing.evaluations) < 2:
        return [table]
    return [
        Paragraph(f"{len(standing.evaluations)} networks. {best.name} is the best of them by the {chosen}."),
        table,
    ]


def _subjects(material: Material, groups: Sequence[_Group]) -> list[Block]:
    networks: list[Sequence[Cell]] = []
    for one in material.standing.evaluations:
        size = one.facts.get("image_size") or _identity(one).get("image_size")
        set_up = [_text(size), _input_of(one), _text(one.setting.get("precision")), _text(one.setting.get("device"))]
        networks.append([one.name, _described(one), one.sha256 or None, *set_up])
    data: list[Sequence[Cell]] = []
    for group in groups:
        counts = ", ".join(f"{count:,} {name}" for name, count in group.first.counts.items())
        data.append([group.title, group.first.kind, group.first.data_sha256, counts])
    blocks: list[Block] = [
        Table(
            caption="Networks",
            heads=["Network", "What it is", "sha256 of the weights", "Image side", "Input", "Precision", "Device"],
            rows=networks,
        ),
        Table(caption="Data", heads=["Benchmark", "Kind", "sha256 of the data", "Holds"], rows=data),
        _seconds(groups),
    ]
    if material.passed_over:
        blocks += [Paragraph("Passed over:"), Bullets(material.passed_over)]
    return blocks


def _scores(group: _Group) -> list[Block]:
    """A row for each score, a column for each network, and how it was made; or, of few scores, the other way round."""
    scores: dict[str, Score] = {}
    notes: dict[str, list[str]] = {}
    for name, result in group.results.items():
        for score in result.scores:
            scores.setdefault(score.key, score)
            if score.note is not None:
                notes.setdefault(f"{score.label}: {score.note}", []).append(name)
    by_network = {name: {one.key: one for one in result.scores} for name, result in group.results.items()}

    def cell(network: str, key: str) -> Cell:
        found = by_network[network].get(key)
        return None if found is None else _number(found)

    caption = f"{group.title}: every score, \u00b1 deviation over folds, [95 % bootstrap interval]"
    made: list[Sequence[Cell]] = [[_head(score), key, score.protocol] for key, score in scores.items()]
    blocks: list[Block] = [Heading(3, group.title)]
    if len(scores) > _MOST_COLUMNS:
        rows = [[head, *(cell(name, str(key)) for name in by_network), key, protocol] for head, key, protocol in made]
        blocks.append(Table(caption=caption, heads=["Score", *by_network, "Key", "Protocol"], rows=rows))
    else:
        blocks.append(
            Table(
                caption=caption,
                heads=["Network", *map(_head, scores.values())],
                rows=[[name, *(cell(name, key) for key in scores)] for name in by_network],
                strong=frozenset(i for i, name in enumerate(by_network) if name == group.best),
            )
        )
    if notes:
        blocks.append(
            Bullets([f"{note} ({_listed(list(dict.fromkeys(of)), len(by_network))})" for note, of in notes.items()])
        )
    if len(scores) <= _MOST_COLUMNS:
        blocks.append(Table(caption=f"{group.title}: how they are made", heads=["Score", "Key", "Protocol"], rows=made))
    return blocks


def _curves(group: _Group) -> list[Block]:
    chosen = _drawn(group)
    by_name: dict[str, dict[str, Curve]] = {}
    for network in chosen:
        for curve in group.results[network].curves:
            by_name.setdefault(curve.name, {})[network] = curve
    figures: list[Figure] = []
    counts = group.first.counts  # of verification sets, or of IJB
    different = counts.get("different pairs", counts.get("pairs", 0) - counts.get("same_pairs", 0))
    for name, curves in by_name.items():
        title = group.title if name == group.first.name else f"{group.title}, {name}"
        figures += roc_and_det(title, curves, different=different)
    best_first = sorted(chosen, key=lambda name: name != group.best)
    for network in best_first[:_MOST_HISTOGRAMS]:
        mode = _POOLING.search(group.results[network].headline)
        for histogram in group.results[network].histograms:
            if mode is not None and mode[0] not in histogram.name:
                continue  # one pooling mode is enough to see how the scores lie
            title = group.title if histogram.name == group.first.name else f"{group.title}, {histogram.name}"
            figure = score_histogram(title, network, histogram)
            figures += [] if figure is None else [figure]
    if not figures:
        return []
    blocks: list[Block] = [Heading(3, group.title)]
    left_out = len(group.results) - len(chosen)
    if left_out:
        blocks.append(Paragraph(f"The {len(chosen)} networks with the best headlines; {left_out} others are left out."))
    return [*blocks, Figures(figures)]


def _worst_cases(groups: Sequence[_Group], shown: Mapping[str, VerificationPairs]) -> list[Block]:
    blocks: list[Block] = [
        Paragraph(
            "Same people with the lowest scores and different ones with the highest, by index in the data; of the best "
            "network alone."
        )
    ]
    for group in groups:
        name, result = group.shown
        if not result.errors:
            continue
        keys = list(dict.fromkeys(key for error in result.errors for key in error))
        rows: list[Sequence[Cell]] = []
        for place, error in enumerate(result.errors):
            rows.append([str(place + 1), *(_case_cell(error.get(key)) for key in keys)])
        table = Table(caption=f"{group.title}, {name}", heads=["", *keys], rows=rows)
        blocks += [Heading(3, group.title), table]
        if result.data_sha256 in shown:
            blocks.append(Pictures(_pictures(result, shown[result.data_sha256])))
    return blocks


def _training(metrics: Sequence[Mapping[str, Any]]) -> list[Block]:
    table, accuracies = logged_scores(metrics)
    figures = training_figures(metrics)
    blocks: list[Block] = []
    if accuracies is not None:
        figures = [accuracies, *figures]
    elif table is not None:
        blocks.append(table)
    if figures:
        blocks.append(Figures(figures))
    return blocks or [Paragraph("The run has logged nothing yet.")]


def _groups(standing: Standing) -> list[_Group]:
    """Results by benchmark and data: two sets of one name with other content are two groups."""
    found: dict[tuple[str, str, str], dict[str, BenchmarkResult]] = {}
    for one in standing.evaluations:
        for result in one.results:
            found.setdefault((result.kind, result.name, result.data_sha256), {})[one.name] = result
    names = [name for _, name, _ in found]
    best = None if standing.best is None else standing.best.name
    return [
        _Group(name if names.count(name) == 1 else f"{name} ({kind}, data {sha256[:8]})", results, best)
        for (kind, name, sha256), results in found.items()
    ]


def _drawn(group: _Group) -> list[str]:
    """Networks with a place in the charts, in the order of the tables: the best ones by their headline."""

    def merit(name: str) -> tuple[bool, float]:
        value = group.results[name][group.results[name].headline].value
        return name == group.best, -1.0 if value is None else value

    kept = set(sorted(group.results, key=merit, reverse=True)[:MOST_LINES])
    return [name for name in group.results if name in kept]


def _number(score: Score) -> Cell:
    if score.value is None:
        return None
    factor = 100.0 if score.is_share else 1.0
    digits = 2 if score.is_share or abs(score.value) >= 10.0 else 4
    text = f"{factor * score.value:.{digits}f}"
    if score.deviation is not None:
        text += f" \u00b1 {factor * score.deviation:.{digits}f}"
    if score.interval is not None:
        text += f" [{factor * score.interval[0]:.{digits}f}, {factor * score.interval[1]:.{digits}f}]"
    return Number(score.value, text)


def _head(score: Score) -> str:
    """Its label with its unit, and the pooling mode where there are several."""
    mode = _POOLING.search(score.key)
    label = f"{score.label}, {mode[0]}" if mode is not None else score.label
    return f"{label} %" if score.is_share else label


def _identity(one: Evaluation) -> Mapping[str, Any]:
    identity = one.facts.get("identity")
    return identity if isinstance(identity, dict) else {}


def _described(one: Evaluation) -> str:
    """Architecture, and where the network came from."""
    identity, network = _identity(one), one.facts.get("network")
    if identity:
        kind, name, arch, size = (identity.get(key) for key in ("kind", "name", "arch", "embedding_dim"))
        return f"{kind} {name}: {arch}, {size}-d"
    if isinstance(network, dict):
        width = f", width {network['width']}" if network.get("width") not in (None, 1, 1.0) else ""
        step = f"step {one.facts.get('step')}, " if one.facts.get("step") is not None else ""
        return f"checkpoint, {step}{network.get('arch')}, {network.get('embedding_dim')}-d{width}"
    return "unknown"


def _input_of(one: Evaluation) -> str:
    """Colour order and normalisation."""
    wanted = _identity(one).get("preprocessing")
    if not isinstance(wanted, dict):
        return "rgb, [-1, 1]"
    mean, std = (
        " ".join(map(str, values)) if isinstance(values, list) else "?"
        for values in (wanted.get("mean"), wanted.get("std"))
    )
    return f"{wanted.get('color')}, mean {mean}, std {std}"


def _seconds(groups: Sequence[_Group]) -> Table:
    stages = dict.fromkeys(stage for group in groups for one in group.results.values() for stage in one.seconds)
    rows: list[Sequence[Cell]] = []
    for group in groups:
        for name, result in group.results.items():
            taken = [result.seconds.get(stage) for stage in stages]
            cells = [None if seconds is None else Number(seconds, f"{seconds:.3g}") for seconds in taken]
            rows.append([name, group.title, *cells])
    return Table(caption="Seconds by stage", heads=["Network", "Benchmark", *stages], rows=rows)


def _case_cell(value: object) -> Cell:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return Number(value, str(value))
    if isinstance(value, float):
        return Number(value, f"{value:.4f}")
    if isinstance(value, list):
        return ", ".join(f"{one:.4g}" if isinstance(one, float) else str(one) for one in value)
    return None if value is None else str(value)


def _listed(names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return "all networks" if total > 1 else names[0]
    return ", ".join(names)


def _text(value: object) -> Cell:
    return None if value is None else str(value)


def _pictures(result: BenchmarkResult, pairs: VerificationPairs) -> list[Picture]:
    """The worst pairs, both faces beside each other."""
    import numpy as np
    import simplejpeg

    from adadistill.loaders.evaluation_sets.verification_pairs import fit_square
    from adadistill.loaders.pixels import decode_image

    pictures = []
    for error in result.errors:
        pair = error.get("pair")
        if not isinstance(pair, int) or not 0 <= pair < len(pairs.same):
            continue
        faces = [
            fit_square(
                decode_image(pairs.images[index], where=f"{pairs.path} image {index}"),
                _FACE_PIXELS,
                where=f"{pairs.path} image {index}",
            )
            for index in (2 * pair, 2 * pair + 1)
        ]
        beside = np.ascontiguousarray(np.concatenate(faces, axis=1))  # (56, 112, 3)
        kind = "same" if pairs.same[pair] else "different"
        cosine = error.get("cosine")
        told = f", cosine {cosine:.3f}" if isinstance(cosine, float) else ""
        pictures.append(Picture(jpeg=simplejpeg.encode_jpeg(beside, quality=85), caption=f"pair {pair}, {kind}{told}"))
    return pictures
