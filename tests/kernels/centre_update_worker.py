"""Runs the Triton centre update in Triton's interpreter, which is chosen before Triton is imported: its own process.

Prints one line of JSON for each case: how far the update is from one sample after the other in float64, and whether an
update that is not ok is undone in every bit.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests_support

tests_support.make_importable()

import torch
from torch.nn.functional import normalize

from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig
from adadistill.kernels.centre_update_triton import adaptive_update_

SHAPES = [(0, 5, 16), (1, 1, 16), (7, 3, 24), (12, 200, 64), (19, 5, 48), (11, 1, 32)]


def main() -> None:
    for (batch, classes, dim), momentum in (*((shape, "weighted") for shape in SHAPES), (SHAPES[2], "unweighted")):
        draw = torch.Generator().manual_seed(batch)
        stored = torch.randn(classes, dim, generator=draw)
        teacher = normalize(torch.randn(batch, dim, generator=draw) + 0.5)
        labels = torch.randint(-1, classes, (batch,), generator=draw)
        cosines = torch.rand(batch, generator=draw) * 2 - 1
        config = CentresConfig(momentum=momentum)
        exact = AdaptiveCentres(config, stored.double())  # float64 takes the torch path
        wanted = exact.propose_update(teacher.double(), labels, cosines.double())
        found_centres = AdaptiveCentres(config, stored.clone())
        before = [found_centres.class_centres.clone(), found_centres.unit_centres().clone()]
        found = found_centres.propose_update(teacher, labels, cosines)
        off = [
            far(found.confidence, wanted.confidence),
            far(found.momentum, wanted.momentum),
            far(found_centres.class_centres, exact.class_centres),
            far(found_centres.unit_centres(), exact.unit_centres()),
        ]
        found.commit_(torch.tensor(True))
        off.append(far(found_centres.class_centres, exact.class_centres))
        untouched = torch.ones(classes, dtype=torch.bool)
        untouched[labels[labels >= 0]] = False
        same = torch.equal(found_centres.class_centres[untouched], before[0][untouched])

        undone = AdaptiveCentres(config, stored.clone())
        broken = torch.where(torch.rand(batch, 1, generator=draw) < 0.3, torch.nan, teacher)
        undone.propose_update(broken, labels, cosines).commit_(torch.tensor(False))
        back = [undone.class_centres, undone.unit_centres()]
        print(
            json.dumps(
                {
                    "case": [batch, classes, dim, momentum],
                    "off": off,
                    "untouched": same,
                    "undone": all(torch.equal(a, b) for a, b in zip(back, before, strict=True)),
                }
            )
        )
    half_masters()
    lengths_of_half_masters()
    rows_beyond_2_to_the_31()


def half_masters() -> None:
    """Computed wide and rounded once, both copies."""
    draw = torch.Generator().manual_seed(5)
    stored = torch.randn(9, 32, generator=draw)
    teacher = normalize(torch.randn(6, 32, generator=draw))
    labels, cosines = torch.tensor([0, 3, 5, 6, 7, 8]), torch.rand(6, generator=draw)
    for dtype in (torch.float16, torch.float32):
        master = stored.to(dtype)
        wide = master.float().clone()
        units = normalize(wide).half()
        adaptive_update_(master, units, teacher, labels, cosines, weighted=True)
        exact = AdaptiveCentres(CentresConfig(), wide.double())
        exact.propose_update(teacher.double(), labels, cosines.double())
        off = [far(master, exact.class_centres), far(units, exact.unit_centres())]
        print(json.dumps({"case": ["half", str(dtype)], "off": off}))


def lengths_of_half_masters() -> None:
    """Inverse lengths instead of unit rows: those of what is stored, undone in every bit, others untouched."""
    for half in ("bfloat16", "float16"):
        draw = torch.Generator().manual_seed(7)
        stored = (0.1 * torch.randn(9, 48, generator=draw)).to(getattr(torch, half))
        teacher = normalize(torch.randn(7, 48, generator=draw))
        labels, cosines = torch.tensor([0, 3, -1, 3, 6, 7, 8]), torch.rand(7, generator=draw)
        centres = AdaptiveCentres(CentresConfig(half=half), stored.clone())
        before = centres.class_centres.clone(), centres.inverse_lengths.clone()
        undone = centres.propose_update(torch.full_like(teacher, torch.nan), labels, cosines)
        undone.commit_(torch.tensor(False))
        same = [torch.equal(centres.class_centres, before[0]), torch.equal(centres.inverse_lengths, before[1])]
        centres.propose_update(teacher, labels, cosines).commit_(torch.tensor(True))
        exact = AdaptiveCentres(CentresConfig(), stored.double())
        exact.propose_update(teacher.double(), labels, cosines.double())
        scaled = centres.unit_centres().double() * centres.inverse_lengths.double()[:, None]
        others = torch.tensor([1, 2, 4, 5])
        same.append(torch.equal(centres.inverse_lengths[others], before[1][others]))
        off = [far(scaled, normalize(centres.class_centres.double())), far(centres.class_centres, exact.class_centres)]
        print(json.dumps({"case": ["lengths", half], "same": same, "off": off}))


def rows_beyond_2_to_the_31() -> None:
    """Rows whose offset needs 64 bits, in 4 GiB of memory that is never touched elsewhere and so never given; and
    cosines that are a column of a packed tensor."""
    last = 2**31 // 64 + 3
    draw = torch.Generator().manual_seed(6)
    rows, teacher = torch.randn(2, 64, generator=draw), normalize(torch.randn(2, 64, generator=draw))
    packed = torch.rand(2, 3, generator=draw)
    results = []
    for labels in (torch.tensor([1, 0]), torch.tensor([last, 2])):
        master = torch.empty(int(labels.max()) + 1, 64, dtype=torch.float16)
        units = torch.empty_like(master)
        master[labels], units[labels] = rows.half(), normalize(rows).half()
        update = adaptive_update_(master, units, teacher, labels, packed[:, 1], weighted=True)
        results.append([update.momentum, master[labels], units[labels]])
        update.commit_(torch.tensor(False))
        results[-1] += [master[labels], units[labels]]
    same = [torch.equal(one, other) for one, other in zip(*results, strict=True)]
    alone = adaptive_update_(rows.clone(), rows.clone(), teacher, torch.tensor([1, 0]), packed[:, 1], weighted=False)
    print(json.dumps({"case": ["beyond"], "same": same, "column": torch.equal(alone.momentum, packed[:, 1])}))


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    if found.shape != wanted.shape or not found.numel():
        return 0.0 if found.shape == wanted.shape else float("inf")
    return (found.double() - wanted.double()).abs().max().item()


if __name__ == "__main__":
    main()
