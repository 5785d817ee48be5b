"""What all ranks must have alike: records, labels, replicated state; real processes, real gloo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_cache import end_of_child, start_child
from small_pack import small_bodies, write_records
from tiny_training import PlainStudent, tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import CheckpointError
from adadistill.core.distributed import Ranks
from adadistill.core.teachers import record_binding
from adadistill.core.training.rank_agreement import (
    check_launch_labels,
    require_equal_replicas,
    require_same_records,
    require_sound_labels,
)
from adadistill.core.training.run import run_training
from adadistill.loaders.block_store.packing import pack_records
from adadistill.loaders.pipelines.pipeline import DataConfig, named_records
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.label_check import LabelClaimError
from adadistill.loaders.records.recordio import RecordWriter


def _said(action: Callable[[], None]) -> str:
    """What is raised; empty where it goes on."""
    try:
        action()
    except (ValueError, CheckpointError) as error:
        return str(error)
    return ""


def _state(changed: str = "") -> dict[str, torch.Tensor]:
    """Of every kind that is replicated; the last element of one of them may be another."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "student.weight": torch.randn(3, 5, generator=generator),
        "class_centres": torch.randn(7, 4, generator=generator).bfloat16(),
        "norm_mean": torch.tensor(float("nan")),
        "num_batches_tracked": torch.tensor(3),
        "seen": torch.tensor([True, False]),
    }
    if changed:
        flat = state[changed].view(-1)
        flat[-1] = 0.0 if changed == "norm_mean" else ~flat[-1] if changed == "seen" else flat[-1] * 2 + 1
    return state


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each of two ranks says of everything that is compared here, by its name."""
    folder = tmp_path_factory.mktemp("ranks")
    same, copy, less = (write_records(folder / name, small_bodies(int(name[0]))) for name in ("9", "9 again", "8"))
    beyond = _claimed(folder, [1.0, 2.0, 3.0, 3.0], 3)

    def look(rank: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
        ranks, data = Ranks(rank=rank, world_size=2), _data(beyond)
        looks = {"same records": lambda: require_same_records(ImageRecords(copy if rank else same), ranks)}
        looks["other records"] = lambda: require_same_records(ImageRecords(less if rank else same), ranks)
        looks["labels"] = lambda: require_sound_labels(data, named_records(data), ranks, needs_several=True)
        for changed in ("", *_state()):
            looks[changed] = lambda changed=changed: require_equal_replicas(_state(changed if rank else ""), ranks)
        (folder / f"{rank}.json").write_text(json.dumps({name: _said(action) for name, action in looks.items()}))

    children = [start_child(lambda rank=rank: look(rank)) for rank in range(2)]
    assert [end_of_child(child) for child in children] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_where_one_rank_sees_other_records_all_stop_and_it_says_both_counts(said: list[dict[str, str]]):
    assert [each["same records"] for each in said] == ["", ""]
    main, other = (each["other records"] for each in said)
    assert main.startswith("other ranks see other records than rank 0 (9 images of 7 identities, fingerprint ")
    assert other.startswith("rank 1 sees other records than rank 0: 8 images of 7 identities, fingerprint ")
    assert "9 images of 7 identities" in other
    assert "Every node needs the same files under" in other


def test_labels_that_rank_0_refuses_stop_every_rank(said: list[dict[str, str]]):
    assert said[0]["labels"] == said[1]["labels"]
    assert "label 3 with 3 identities" in said[0]["labels"]


def test_one_element_that_differs_on_one_rank_stops_both(said: list[dict[str, str]]):
    assert said[0][""] == said[1][""] == ""
    for changed in _state():
        assert f"{changed} of rank(s) [1] differs from rank 0's (1 of 5 tensors differ)" in said[0][changed]
        assert said[0][changed] == said[1][changed]


def test_one_rank_compares_nothing(tmp_path: Path):
    """Not even whether there are records, which is said where they are opened."""
    (tmp_path / "train.rec").write_bytes(b"")
    require_same_records(ImageRecords(tmp_path / "train.rec"), Ranks())
    require_equal_replicas(_state(), Ranks())


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


def test_labels_are_refused_before_the_folder_is_made(tmp_path: Path):
    recipe = tiny_recipe(tmp_path, centres__kind="trainable", teacher="null", geometry_margin__mode="off")
    write_tiny_records(tmp_path)
    (tmp_path / "property").write_text("85742,32,32\n")
    with pytest.raises(LabelClaimError, match="identities never appear"):
        run_training(recipe, tmp_path / "run", ranks=Ranks(), student=PlainStudent())
    assert not (tmp_path / "run").exists()
