"""The peer is what it says: its head is the public one to the last digits, and its first steps are ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_heads import NAME, geometry_of
from tests_support import golden_files

from adadistill.bench.origin_step import OriginConstants, OriginHead, with_torch_prelu
from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.backbones.layers import ChannelPReLU

# Its head has the adaptive geometry; weight 0 is none.
CASES = [path for path in golden_files("adadistill_adaface*.npz") if not any(w in path.stem for w in ("static", "unw"))]


@pytest.mark.golden
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_its_head_is_the_public_one(path):
    case = np.load(path, allow_pickle=False)
    name = NAME.fullmatch(path.stem)
    geometry = geometry_of(name)
    head = OriginHead(
        torch.from_numpy(case["centres_before"]),
        OriginConstants(
            geometry_weight=0.0 if geometry.mode == "off" else geometry.weight,
            geometry_scale=geometry.scale,
            geometry_warmup_epochs=geometry.warmup_epochs,
        ),
    )
    head.norm_mean, head.norm_std = (torch.tensor(case[f"norm_{key}_before"]) for key in ("mean", "std"))
    for i in range(len(case["loss"])):
        student = torch.from_numpy(case["student"][i]).requires_grad_()
        labels = torch.from_numpy(case["labels"][i])
        epoch = float(case["epoch"][i]) if "epoch" in case else 0.0
        logits = head.logits(student, labels, torch.from_numpy(case["teacher"][i]), epoch)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(loss, student)
        assert logits.detach().numpy() == pytest.approx(case["logits"][i], rel=1e-9, abs=1e-12)
        assert head.centres.detach().T.numpy() == pytest.approx(case["centres"][i], rel=1e-9, abs=1e-12)
        assert loss.item() == pytest.approx(case["loss"][i], rel=1e-9)
        assert gradient.numpy() == pytest.approx(case["student_grad"][i], rel=1e-7, abs=1e-9)


def test_its_student_has_torchs_prelu_and_the_same_weights():
    ours = build_backbone(BackboneConfig(arch="mobilefacenet", width=0.25), 32, generator=0)
    plain = with_torch_prelu(ours)
    assert not any(isinstance(module, ChannelPReLU) for module in plain.modules())
    assert any(isinstance(module, ChannelPReLU) for module in ours.modules())
    assert plain.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in plain.state_dict().items())
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(plain(images), ours(images))
