"""Frozen centres: the unit rows the softmax reads, and that only centres of these very people are taken."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adadistill.core.distributed import Ranks
from adadistill.core.method.centre_files import CentresFileError, stored_centres, write_centres
from adadistill.core.method.class_centres import centre_confidence, unit_rows
from adadistill.core.method.frozen_centres import FrozenCentres, load_frozen_centres
from adadistill.core.precision import Precision, resolve_precision
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.synthetic.synthetic_faces import SyntheticFacesConfig, write_synthetic_records

CPU = resolve_precision("float32", torch.device("cpu"))


def rows(count: int = 4, dim: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return 3 * torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> ImageRecords:
    faces = SyntheticFacesConfig(image_size=16, identities=4, images_per_identity=2)
    return ImageRecords(write_synthetic_records(tmp_path_factory.mktemp("faces"), faces))


def load(path: Path, records: ImageRecords, *, embedding_dim: int = 8, precision: Precision = CPU) -> FrozenCentres:
    return load_frozen_centres(path, records=records, embedding_dim=embedding_dim, precision=precision, ranks=Ranks())


# The rows


def test_the_softmax_reads_unit_rows_of_one_copy():
    centres = FrozenCentres(stored_centres(rows(), "t"))
    assert torch.equal(centres.unit_centres(), unit_rows(rows()))
    assert centres.unit_centres() is centres.class_centres
    assert not centres.unit_centres().requires_grad


def test_a_coarser_copy_comes_with_target_rows_as_precise_as_the_file():
    centres = FrozenCentres(stored_centres(rows(), "t"), unit_dtype=torch.bfloat16)
    assert torch.equal(centres.unit_centres(), unit_rows(rows()).bfloat16())
    target = centres.target_store().rows_of(torch.tensor([3, -1, 1]))
    assert torch.equal(target[[0, 2]], unit_rows(rows())[[3, 1]])


@pytest.mark.parametrize(("stored", "used"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_rows_are_normalised_in_the_wider_of_file_and_run(stored: torch.dtype, used: torch.dtype):
    centres = FrozenCentres(stored_centres(rows(dtype=stored), "t"), dtype=used)
    assert centres.unit_centres().dtype == used
    assert torch.equal(centres.unit_centres(), unit_rows(rows(dtype=stored).double()).to(used))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda_the_softmax_reads_bfloat16_as_with_adaptive_centres():
    centres = FrozenCentres(stored_centres(rows(), "t"), device="cuda")
    assert centres.unit_centres().dtype == torch.bfloat16
    assert torch.allclose(centres.class_centres.cpu(), unit_rows(rows()))


def test_confidence_is_that_of_adaptive_centres_and_0_for_ignored_samples():
    centres = FrozenCentres(stored_centres(rows(), "t"))
    teacher = unit_rows(rows(3) + rows(3).flip(1))
    confidence = centres.confidence(torch.tensor([2, -1, 0]), teacher)
    expected = centre_confidence(rows()[[2, 0]], teacher[[0, 2]])
    assert torch.allclose(confidence[[0, 2]], expected)
    assert confidence[1] == 0.0


def test_a_checkpoint_s_centres_are_not_taken_for_frozen_ones():
    centres = FrozenCentres(stored_centres(rows(), "teacher, step 7"))
    centres.load_state_dict(centres.state_dict())
    with pytest.raises(ValueError, match=r"come from teacher, step 7, but the checkpoint holds \['class_centres'\]"):
        centres.load_state_dict({"class_centres": rows()})


# At the door


def test_centres_of_these_records_are_taken_and_reported(
    tmp_path: Path, records: ImageRecords, caplog: pytest.LogCaptureFixture
):
    stored = stored_centres(rows(), "teacher, step 7", records.fingerprint())
    write_centres(tmp_path / "c.safetensors", stored)
    with caplog.at_level(logging.INFO):
        centres = load(tmp_path / "c.safetensors", records)
    assert torch.equal(centres.unit_centres(), unit_rows(rows()))
    assert (centres.name, centres.sha256) == ("c.safetensors", stored.sha256)
    assert "frozen centres: 4 x 8 from c.safetensors (trained on these records)" in caplog.text


def test_centres_that_do_not_say_whose_they_are_are_taken_and_that_is_reported(
    tmp_path: Path, records: ImageRecords, caplog: pytest.LogCaptureFixture
):
    write_centres(tmp_path / "c.npy", stored_centres(rows(), "t"), file_format="npy")
    with caplog.at_level(logging.INFO):
        load(tmp_path / "c.npy", records)
    assert "it does not say on which records they were trained" in caplog.text


def test_centres_of_other_people_are_refused_and_the_way_out_works(tmp_path: Path, records: ImageRecords):
    write_centres(tmp_path / "c.safetensors", stored_centres(rows(), "t", "ab" * 32))
    with pytest.raises(CentresFileError, match=r"of other records \(abababababab\.\.\.\).*--drop-records"):
        load(tmp_path / "c.safetensors", records)

    from adadistill.recipes.centres import main

    export = ["export", str(tmp_path / "c.safetensors"), str(tmp_path / "d.safetensors"), "--drop-records"]
    assert main(export) == 0
    assert torch.equal(load(tmp_path / "d.safetensors", records).unit_centres(), unit_rows(rows()))


def test_another_number_of_identities_or_dimensions_is_refused(tmp_path: Path, records: ImageRecords):
    write_centres(tmp_path / "five.npy", stored_centres(rows(5), "t"), file_format="npy")
    with pytest.raises(CentresFileError, match=r"five\.npy holds 5 class centres, .*train\.rec has 4 identities"):
        load(tmp_path / "five.npy", records)
    with pytest.raises(CentresFileError, match="8-d class centres, the student's embeddings are 16-d; set student"):
        load(tmp_path / "five.npy", records, embedding_dim=16)


def test_ranks_that_read_other_centres_are_refused(
    tmp_path: Path, records: ImageRecords, monkeypatch: pytest.MonkeyPatch
):
    write_centres(tmp_path / "c.npy", stored_centres(rows(), "t"), file_format="npy")
    of_rank_0 = stored_centres(2 * rows(), "t").sha256
    monkeypatch.setattr("adadistill.core.method.frozen_centres.broadcast_text", lambda text, ranks: of_rank_0)
    with pytest.raises(CentresFileError, match="other class centres on rank 1 than on rank 0"):
        load_frozen_centres(
            tmp_path / "c.npy", records=records, embedding_dim=8, precision=CPU, ranks=Ranks(rank=1, world_size=2)
        )
