"""All ranks train on the same records, or none does: real processes, real gloo."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from small_cache import end_of_child, start_child
from small_pack import small_bodies, write_records

from adadistill.core.distributed import Ranks
from adadistill.core.training.record_agreement import RecordAgreementError, require_same_records
from adadistill.loaders.image_records import ImageRecords


def _compare(path: Path, rank: int, store: Path) -> str:
    """What one rank of two says; empty where it goes on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    try:
        require_same_records(ImageRecords(path), Ranks(rank=rank, world_size=2))
    except RecordAgreementError as error:
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
