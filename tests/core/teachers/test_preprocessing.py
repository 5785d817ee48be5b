"""A network behind `TeacherNetwork` sees its own colour order and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from adadistill.core.teachers import Preprocessing, TeacherNetwork
from adadistill.loaders.pixels import to_network_input

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _seen(preprocessing: Preprocessing, images_u8: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    images = to_network_input(images_u8, device=torch.device("cpu"), dtype=dtype)
    return TeacherNetwork(nn.Identity(), preprocessing).to(dtype=dtype)(images)


@pytest.mark.parametrize(
    ("color", "mean", "std"), [("rgb", *IMAGENET), ("bgr", *IMAGENET), ("bgr", (0,) * 3, (1,) * 3)]
)
def test_pixels_arrive_as_the_network_was_trained(color: str, mean: tuple, std: tuple):
    pixels = np.random.RandomState(0).randint(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    expected = pixels[..., ::-1] if color == "bgr" else pixels
    expected = ((expected / 255.0 - mean) / std).transpose(0, 3, 1, 2)

    seen = _seen(Preprocessing(color=color, mean=mean, std=std), torch.from_numpy(pixels))

    np.testing.assert_allclose(seen.numpy(), expected, atol=1e-6)  # the constants are float32


def test_the_projects_own_input_is_handed_on_untouched():
    images = torch.rand(2, 3, 4, 4)
    assert TeacherNetwork(nn.Identity(), Preprocessing())(images) is images


def test_its_constants_are_no_part_of_the_state_and_keep_half_precision():
    images = torch.rand(1, 3, 4, 4, dtype=torch.bfloat16)
    network = TeacherNetwork(nn.Identity(), Preprocessing(mean=IMAGENET[0], std=IMAGENET[1]))
    assert network(images).dtype == torch.bfloat16
    assert not network.state_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"color": "gbr"}, "rgb or bgr"),
        ({"mean": (127.5,) * 3}, "divide by 255"),
        ({"mean": (-0.1, 0.5, 0.5)}, "scale of 0 to 1"),
        ({"std": (float("nan"),) * 3}, "finite"),
        ({"std": (0.0, 1.0, 1.0)}, "positive"),
    ],
)
def test_impossible_statistics_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)
