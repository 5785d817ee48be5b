"""Two sets of rows side by side: how many times faster the second is, and whether that is more than noise.

Rows are matched by what they measured (bench, machine, threads, keys), and every spread that has a better direction is
compared. The ratio is of medians, above 1 where B is faster. Its noise comes from both sides: half the width from p20
to p80 of a row, or half the range of the medians where a set holds several rows of one key, whichever is wider, as a
share of the median; added in squares. A ratio further from 1 than twice its noise is called faster or slower. For equal
normal samples, that many groups as the benches take and no drift, about one comparison in fifty is then called wrongly;
machines drift, so repeat what matters: several runs into each folder, A and B in turn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

from adadistill.bench.report.row_sets import Key, key_of, machine
from adadistill.bench.report.tables import head
from adadistill.bench.row_schema import BENCHES, Row, unit_of
from adadistill.core.report.document import Block, Cell, Document, Number, Paragraph, Table
from adadistill.core.report.text import short_number

Verdict = Literal["faster", "slower", "within noise", "noise unknown"]
_NOISES = 2.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One value of one key in both sets."""

    bench: str
    what: str
    """The keys, for people; plain text."""
    value: str
    a: float
    b: float
    ratio: float
    """How many times better B is."""
    noise: float | None
    """Of the ratio, relative; None where no side has a spread."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that could be matched."""

    compared: list[Compared]
    only_a: int
    """Keys without a partner."""
    only_b: int
    elsewhere: int
    """Of those, keys with a partner on another machine."""


def compare(a: Sequence[Row], b: Sequence[Row], *, across_machines: bool = False) -> Comparison:
    """Match two sets of rows.

    Args:
        across_machines: also match rows of different machines.
    """
    one, other = (_by_key(rows, with_machine=not across_machines) for rows in (a, b))
    shared = [key for key in one if key in other]
    anywhere = {key_of(row, with_machine=False) for key in one if key not in other for row in one[key]}
    elsewhere = anywhere & {key_of(row, with_machine=False) for key in other if key not in one for row in other[key]}
    return Comparison(
        compared=[found for key in shared for found in _compared(one[key], other[key], across_machines)],
        only_a=len(one) - len(shared),
        only_b=len(other) - len(shared),
        elsewhere=len(elsewhere),
    )


def comparison_document(found: Comparison, names: tuple[str, str]) -> Document:
    """A row for each value that could be compared, and how many of each verdict there are."""
    rows: list[Sequence[Cell]] = [
        [
            one.bench,
            one.what,
            one.value,
            Number(one.a, short_number(one.a)),
            Number(one.b, short_number(one.b)),
            Number(one.ratio, f"{one.ratio:.3f}"),
            None if one.noise is None else Number(one.noise, f"{one.noise:.1%}"),
            one.verdict,
        ]
        for one in found.compared
    ]
    caption = f"A is {names[0]}, B is {names[1]}. Faster or slower: further from 1 than {_NOISES:g} times the noise."
    heads = ["bench", "what", "value", "A", "B", "B is x times as fast", "noise", "verdict"]
    blocks: list[Block] = [Table(caption=caption, heads=heads, rows=rows)]
    counts = {verdict: sum(one.verdict == verdict for one in found.compared) for verdict in get_args(Verdict)}
    blocks.append(Paragraph(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + "."))
    if found.only_a or found.only_b:
        blocks.append(Paragraph(f"Without a partner: {found.only_a} of A, {found.only_b} of B."))
    if found.elsewhere:
        told = f"{found.elsewhere} of them have one on another machine; --across-machines compares those too."
        blocks.append(Paragraph(told))
    return Document(title="Comparison", blocks=blocks)


def _by_key(rows: Sequence[Row], *, with_machine: bool) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key_of(row, with_machine=with_machine), []).append(row)
    return found


def _compared(a: Sequence[Row], b: Sequence[Row], across_machines: bool) -> list[Compared]:
    schema = BENCHES[a[0]["bench"]]
    keys = {name: a[0].get(name) for name in schema.keys}
    what = ", ".join(f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in keys.items())
    where = f"{machine(a[0])} to {machine(b[0])}" if across_machines else machine(a[0])
    found = []
    for name, kind in schema.values.items():
        better = unit_of(name).better
        sides = [[row[name] for row in rows if row.get(name) is not None] for rows in (a, b)]
        if not kind.startswith("spread") or better is None or not all(sides):
            continue
        in_a, in_b = (median(spread["median"] for spread in side) for side in sides)
        if min(in_a, in_b) <= 0.0:
            continue
        ratio = in_b / in_a if better == "higher" else in_a / in_b
        widths = [_width(sides[0], in_a), _width(sides[1], in_b)]
        noise = None if 0.0 in widths else math.hypot(*widths)
        found.append(
            Compared(
                a[0]["bench"], f"{where}: {what}, threads {a[0]['threads']}", head(name), in_a, in_b, ratio,
                noise, _verdict(ratio, noise),
            )
        )  # fmt: skip
    return found


def _width(spreads: Sequence[dict[str, float]], middle: float) -> float:
    """Half the width of what a set says of a value, relative; 0 where it is a single measurement."""
    within = median(spread["p80"] - spread["p20"] for spread in spreads)
    between = max(spread["median"] for spread in spreads) - min(spread["median"] for spread in spreads)
    return max(within, between) / 2 / middle


def _verdict(ratio: float, noise: float | None) -> Verdict:
    if noise is None:
        return "noise unknown"
    if abs(math.log(ratio)) <= _NOISES * noise:
        return "within noise"
    return "faster" if ratio > 1.0 else "slower"
