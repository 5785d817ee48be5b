"""What a step hands to its collectives: counted in two gloo processes, it is what the formula says, byte for byte."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from tests_support import ROOT
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.backbones import BackboneConfig, backbone_skeleton
from adadistill.core.communication import (
    CENTRE_GRADIENT,
    SAMPLE_PACKET,
    SHARDED_CENTRES,
    STORE_EXCHANGE,
    STUDENT_GRADIENT,
    TEACHER_EMBEDDINGS,
    CollectiveCounter,
    Transfer,
    bytes_by_part,
    handed_bytes,
    step_transfers,
    wire_bytes,
)
from adadistill.core.recipe import Recipe, load_recipe

WORKER = Path(__file__).with_name("communication_worker.py")
IDENTITIES = 6
# The first steps settle DDP's buckets.
SETTLED = 3
TRAINABLE = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}


def origin_transfers(*, parameters: int, num_classes: int, dim: int) -> list[Transfer]:
    """What the published implementation hands over: gradients of the student and of centres that nobody trains."""
    return [
        Transfer(STUDENT_GRADIENT, "all_reduce", 4 * parameters),
        Transfer(CENTRE_GRADIENT, "all_reduce", 4 * num_classes * dim),
    ]


def _overrides(folder: Path, packed: Path) -> dict[str, dict[str, Any]]:
    short = {"optim__epochs": 1, "optim__milestones": "[]", "log__every": 1}
    return {
        "stored": short,
        "trainable": {**short, **TRAINABLE},
        "sharded": {**short, **TRAINABLE, "centres__placement": "sharded"},
        "network": {
            **short,
            "teacher__embeddings": "null",
            "teacher__checkpoint": str(folder / "trainable"),
            "teacher__check": "false",
            "data__packed": str(packed),
            "data__packed_in": "device_share",
        },
    }


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Recipe, list[list[list[Transfer]]]]]:
    """By name of the run: its recipe, and what each of two ranks handed over in every settled step."""
    from adadistill.core.teachers import record_binding
    from adadistill.loaders.block_store.packing import pack_records
    from adadistill.loaders.records.image_records import ImageRecords

    folder = tmp_path_factory.mktemp("counted")
    records = ImageRecords(write_tiny_records(folder, identities=IDENTITIES), None)
    pack_records(records, folder / "packed", image_size=32, layout="rgb", binding=record_binding(records))
    overrides = _overrides(folder, folder / "packed")
    plan = {"data": str(folder), "runs": [{"name": name, "overrides": value} for name, value in overrides.items()]}
    (folder / "plan.json").write_text(json.dumps(plan))
    run_ranks([str(WORKER), str(folder / "plan.json"), str(folder)], 2)
    by_rank = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return {
        name: (
            tiny_recipe(folder, **value),
            [[[Transfer(*t) for t in step] for step in found[name][SETTLED:]] for found in by_rank],
        )
        for name, value in overrides.items()
    }


def _student_sizes(config: BackboneConfig, image_size: int) -> tuple[int, int]:
    network = backbone_skeleton(config, image_size)
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    return sum(p.numel() for p in network.parameters()), sum(buffer.numel() for buffer in statistics)


def _formula(recipe: Recipe, ranks: int, **changes: Any) -> list[Transfer]:
    parameters, statistics = _student_sizes(recipe.student, recipe.data.image_size)
    sizes = {"num_classes": IDENTITIES, "parameters": parameters, "running_statistics": statistics, **changes}
    return step_transfers(recipe, ranks=ranks, **sizes)


def _by_kind(transfers: list[Transfer]) -> Counter[tuple[str, str]]:
    total: Counter[tuple[str, str]] = Counter()
    for transfer in transfers:
        total[transfer.part, transfer.collective] += transfer.bytes
    return total


@pytest.mark.parametrize("run", ["stored", "trainable", "sharded", "network"])
def test_every_byte_that_two_ranks_hand_over_is_in_the_formula(counted: dict[str, Any], run: str):
    recipe, by_rank = counted[run]
    expected = _by_kind(_formula(recipe, 2, store_image_bytes=3 * 32 * 32))
    assert len(by_rank[0]) == 3
    # Rows of a shared store are asked for one batch ahead, so the last step of an epoch asks for none.
    at_the_end = Counter({kind: count for kind, count in expected.items() if kind[0] != STORE_EXCHANGE})
    for *steps, last in by_rank:
        for step in steps:
            assert _by_kind(step) == expected
        assert _by_kind(last) == at_the_end


def test_each_kind_of_run_sends_what_only_it_needs(counted: dict[str, Any]):
    parts = {run: set(bytes_by_part(by_rank[0][0])) for run, (_, by_rank) in counted.items()}
    assert parts["trainable"] - parts["stored"] == {CENTRE_GRADIENT}
    assert parts["sharded"] - parts["stored"] == {SHARDED_CENTRES}
    assert parts["network"] - parts["stored"] == {TEACHER_EMBEDDINGS, STORE_EXCHANGE}
    assert parts["stored"] < parts["network"]


MS1MV2_IDENTITIES, RANKS, PER_RANK = 85_742, 8, 1024


@pytest.mark.parametrize(("overrides", "share"), [((), 12), (("teacher={cvlface: null, embeddings: t.npy}",), 25)])
def test_the_published_step_on_eight_ranks_stays_within_the_design(overrides: tuple[str, ...], share: int):
    recipe = load_recipe("ms1mv2_ir50_to_mobilefacenet", [f"data.global_batch_size={RANKS * PER_RANK}", *overrides])
    ours = _formula(recipe, RANKS, num_classes=MS1MV2_IDENTITIES)
    parameters, _ = _student_sizes(recipe.student, 112)
    origin = origin_transfers(parameters=parameters, num_classes=MS1MV2_IDENTITIES, dim=512)
    assert handed_bytes(origin) == pytest.approx(180e6, rel=0.005)
    assert wire_bytes(ours, RANKS) * share <= wire_bytes(origin, RANKS)


def test_a_ring_sends_an_all_reduce_twice_and_everything_else_once():
    assert Transfer("x", "all_reduce", 800).wire_bytes(8) == 1400
    assert Transfer("x", "all_gather", 800).wire_bytes(8) == 700
    assert Transfer("x", "all_to_all", 800).wire_bytes(2) == 400
    assert Transfer("x", "all_reduce", 800).wire_bytes(1) == 0


def test_sharded_centres_send_samples_and_never_centres():
    recipe = tiny_recipe(Path("faces"), **TRAINABLE)
    few, many = (_formula(recipe, 2, placement="sharded", num_classes=count) for count in (10, 10**6))
    assert few == many
    assert bytes_by_part(few)[SHARDED_CENTRES] == 4 * 8 * (16 + 1 + 16 + 3)
    assert CENTRE_GRADIENT not in bytes_by_part(few)


def test_one_rank_sends_nothing_and_ranks_must_divide_the_batch():
    recipe = tiny_recipe(Path("faces"))
    assert _formula(recipe, 1) == []
    assert bytes_by_part(_formula(recipe, 4))[SAMPLE_PACKET] == 5 * 4 * 8
    with pytest.raises(ValueError, match="8 does not divide by 3 ranks"):
        _formula(recipe, 3)
    spread = tiny_recipe(Path("faces"), data__packed="p", data__packed_in="device_share")
    with pytest.raises(ValueError, match="size of a stored image"):
        _formula(spread, 2)


def test_float64_doubles_all_but_the_stored_images():
    recipe = tiny_recipe(Path("faces"), data__packed="p", data__packed_in="device_share")
    single, double = (bytes_by_part(_formula(recipe, 2, store_image_bytes=99, value_bytes=w)) for w in (4, 8))
    assert single[STORE_EXCHANGE] == double[STORE_EXCHANGE]
    assert 2 * single[STUDENT_GRADIENT] == double[STUDENT_GRADIENT]


def test_the_counter_leaves_ordinary_operators_alone():
    with CollectiveCounter() as counter:
        total = torch.ones(3).sum()
    assert total == 3.0
    assert counter.take() == []


def test_the_bytes_in_the_documentation_are_those_of_the_formula():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    recipe = load_recipe("ms1mv2_ir50_to_mobilefacenet", [f"data.global_batch_size={RANKS * PER_RANK}"])
    ours = _formula(recipe, RANKS, num_classes=MS1MV2_IDENTITIES)
    parameters, _ = _student_sizes(recipe.student, 112)
    origin = origin_transfers(parameters=parameters, num_classes=MS1MV2_IDENTITIES, dim=512)
    for size in (*bytes_by_part(ours).values(), handed_bytes(origin)):
        assert f"| {size:,} |" in page
    cached = [transfer for transfer in ours if transfer.part != TEACHER_EMBEDDINGS]
    for transfers in (ours, cached, origin):
        assert f"{wire_bytes(transfers, RANKS) / 1e6:.1f} MB" in page
