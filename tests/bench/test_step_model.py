"""The predicted step lies where its arithmetic puts it, grows with the work, and is none for other devices."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from adadistill.bench.step_model import predicted_step_ms
from adadistill.core.backbones import BackboneConfig

STEP: dict[str, Any] = {"batch": 1024, "identities": 85_742, "in_bfloat16": True, "compiled": False}


def predicted(arch: str = "mobilefacenet", **changes: Any) -> tuple[float, float]:
    found = predicted_step_ms(BackboneConfig(arch=arch), 112, device=torch.device("cuda"), **{**STEP, **changes})
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")


@pytest.mark.slow
def test_the_published_steps_are_where_their_arithmetic_puts_them() -> None:
    # 85,742 x 1024 x 512 x 4 operations at 790 TFLOP/s; IR-50 at 3 x 12.6 GFLOP beside its unfused traffic.
    softmax = predicted()[0] - predicted(identities=1)[0]
    assert softmax == pytest.approx(0.228, rel=0.01)
    assert 30_000 < 1024e3 / predicted()[1] < 1024e3 / predicted()[0] <= 111_000
    assert 7_000 < 1024e3 / predicted("ir50")[1] < 1024e3 / predicted("ir50")[0] < 22_000


def test_more_work_takes_longer() -> None:
    for few, many in itertools.pairwise(predicted(batch=size) for size in (64, 256, 1024)):
        assert few[0] < many[0]
        assert few[1] < many[1]
    assert predicted(parts=4)[1] > predicted()[1]


def test_an_unknown_device_has_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another Vendor")
    assert predicted_step_ms(BackboneConfig(), 112, device=torch.device("cuda"), **STEP) is None
    assert predicted_step_ms(BackboneConfig(), 112, device=torch.device("cpu"), **STEP) is not None
