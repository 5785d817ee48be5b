"""All ranks train on the same records with labels that are classes, or none does: real processes, real gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_cache import end_of_child, start_child
from small_pack import small_bodies, write_records
from tiny_training import PlainStudent, tiny_recipe, write_tiny_records

from adadistill.core.distributed import Ranks
from adadistill.core.teachers import record_binding
from adadistill.core.training.record_agreement import (
    check_launch_labels,
    require_same_records,
    require_sound_labels,
)
from adadistill.core.training.run import run_training
from adadistill.loaders.block_store.packing import pack_records
from adadistill.loaders.pipelines.pipeline import DataConfig, named_records
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.label_check import LabelClaimError
from adadistill.loaders.records.recordio import RecordWriter


def _compare(path: Path, rank: int, store: Path) -> str:
    """What one rank of two says; empty where it goes on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    try:
        require_same_records(ImageRecords(path), Ranks(rank=rank, world_size=2))
    except ValueError as error:
        return str(error)
    return ""


def _on_two_ranks(folder: Path, counts: list[int]) -> list[str]:
    """What each rank says of a record file of its own with so many images of seven identities."""
    paths = [write_records(folder / f"node-{rank}", small_bodies(count)) for rank, count in enumerate(counts)]
    said = [folder / f"said-{rank}" for rank in range(2)]
    children = [
        start_child(lambda rank=rank: said[rank].write_text(_compare(paths[rank], rank, folder / "store")))
        for rank in range(2)
    ]
    assert [end_of_child(child) for child in children] == [0, 0]
    return [path.read_text() for path in said]


def test_ranks_that_see_the_same_go_on(tmp_path: Path):
    assert _on_two_ranks(tmp_path, [9, 9]) == ["", ""]


def test_where_one_sees_others_all_stop_and_it_says_both_counts(tmp_path: Path):
    main, other = _on_two_ranks(tmp_path, [9, 8])
    assert main.startswith("other ranks see other records than rank 0 (9 images of 7 identities, fingerprint ")
    assert other.startswith("rank 1 sees other records than rank 0: 8 images of 7 identities, fingerprint ")
    assert "9 images of 7 identities" in other
    assert "Every node needs the same files under" in other


def test_one_rank_compares_nothing(tmp_path: Path):
    """Not even whether there are records, which is said where they are opened."""
    (tmp_path / "train.rec").write_bytes(b"")
    require_same_records(ImageRecords(tmp_path / "train.rec"), Ranks())


def _data(path: Path, **other: object) -> DataConfig:
    return DataConfig(records=str(path), image_size=32, global_batch_size=4, **other)


def _launch(path: Path, *, needs_several: bool = True, **other: object) -> list[str]:
    config = _data(path, **other)
    return check_launch_labels(config, named_records(config), needs_several=needs_several)


def _claimed(folder: Path, labels: list[float], claimed: int) -> Path:
    with RecordWriter(folder / "train.rec") as writer:
        for key, (body, label) in enumerate(zip(small_bodies(len(labels)), labels, strict=True)):
            writer.write(key, body, labels=label)
    (folder / "property").write_text(f"{claimed},32,32\n")
    return folder / "train.rec"


def test_a_launch_refuses_labels_that_are_no_class_before_it_reads_an_image(tmp_path: Path):
    path = _claimed(tmp_path, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0], 3)
    with pytest.raises(LabelClaimError, match=r"record 4 .*: label 3 with 3 identities: labels begin at 1\?"):
        _launch(path)
    with pytest.raises(LabelClaimError, match="label 3 with 3 identities"):
        _launch(path, on_damaged="skip", max_damaged=1)
    (told,) = _launch(path, on_damaged="skip", max_damaged=2)
    assert told.endswith("(skipped: data.on_damaged)")
    (told,) = _launch(path, num_classes=4)
    assert told.startswith("labels 1 to 3, 1 identity never appears")


def test_a_launch_refuses_what_is_no_whole_number(tmp_path: Path):
    with pytest.raises(LabelClaimError, match=r"record 1 .*: label 0\.5 is no whole number in \[0, 3\)"):
        _launch(_claimed(tmp_path, [0.0, 0.5, 1.0, 2.0], 3))


def test_a_launch_refuses_one_identity_unless_nothing_is_told_apart(tmp_path: Path):
    path = _claimed(tmp_path, [2.0] * 6, 3)
    with pytest.raises(LabelClaimError, match="all images have label 2: one identity"):
        _launch(path)
    assert len(_launch(path, needs_several=False)) == 1


def test_a_launch_refuses_another_set_s_number_unless_the_recipe_states_it(tmp_path: Path):
    path = _claimed(tmp_path, [0.0, 1.0, 2.0, 0.0], 85742)
    with pytest.raises(
        LabelClaimError, match=r"labels 0 to 2, 85,739 identities never appear .*=3 if there are no more, 85742"
    ):
        _launch(path)
    assert len(_launch(path, num_classes=85742)) == 1
    assert _launch(path, num_classes=3) == []


def test_a_launch_looks_at_the_labels_of_the_packed_store_that_it_reads(tmp_path: Path):
    path = _claimed(tmp_path, [0.0, 1.0, 2.0, 3.0], 4)
    records = ImageRecords(path)
    pack_records(records, tmp_path / "rgb", binding=record_binding(records), layout="rgb", image_size=32)
    assert _launch(path, packed=str(tmp_path / "rgb")) == []
    with pytest.raises(LabelClaimError, match=r"record 3 .*: label 3 with 3 identities"):
        _launch(path, packed=str(tmp_path / "rgb"), num_classes=3)


def test_what_rank_0_refuses_stops_every_rank(tmp_path: Path):
    path = _claimed(tmp_path, [1.0, 2.0, 3.0, 3.0], 3)
    said = [tmp_path / f"said-{rank}" for rank in range(2)]

    def one(rank: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 2), rank=rank, world_size=2)
        config = _data(path)
        try:
            require_sound_labels(config, named_records(config), Ranks(rank=rank, world_size=2), needs_several=True)
        except LabelClaimError as error:
            said[rank].write_text(str(error))

    children = [start_child(lambda rank=rank: one(rank)) for rank in range(2)]
    assert [end_of_child(child) for child in children] == [0, 0]
    assert said[0].read_text() == said[1].read_text()
    assert "label 3 with 3 identities" in said[0].read_text()


def test_labels_are_refused_before_the_folder_is_made(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, centres__kind="trainable", teacher="null", geometry_margin__mode="off")
    write_tiny_records(tmp_path)
    (tmp_path / "property").write_text("85742,32,32\n")
    with pytest.raises(LabelClaimError, match="identities never appear"):
        run_training(recipe, tmp_path / "run", ranks=Ranks(), student=PlainStudent())
    assert not (tmp_path / "run").exists()
