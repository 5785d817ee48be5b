"""Our networks under the names, and in the files, that the public implementations load: the way back.

Renaming is exact. An IR network has an exact form in insightface's IResNet too: the shortcut that IResNet
learns in stage 1 becomes an identity, and the batch norm of the embedding gets a weight of 1 and a bias of 0. The
reverse does not exist, as IR has no place for what IResNet learns there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save
from torch import Tensor, nn

from adadistill.core.backbones import BackboneConfig, BackboneName, backbone_skeleton
from adadistill.core.backbones.ir import IR
from adadistill.core.backbones.public_formats import FORMATS, Publisher, publishers_of
from adadistill.core.backbones.public_weights import public_names, swap_colour_order_
from adadistill.loaders.atomic_file import atomic_file

PUBLIC_IMAGE_SIZE: Final = 112

_IRESNET_OF: Final[Mapping[BackboneName, BackboneName]] = {
    "ir18": "iresnet18",
    "ir34": "iresnet34",
    "ir50": "iresnet50",
    "ir101": "iresnet100",
}


def check_published_file(path: Path, config: BackboneConfig, image_size: int, publisher: Publisher) -> None:
    """See that a network has a public form and that the file is one which the publisher's code would open.

    Raises:
        ValueError: there is no exact public form of it, or the file ends otherwise.
        FileExistsError: the file is there already.
    """
    _public_config(config, image_size, publisher)
    suffixes = FORMATS[publisher].prefixes
    if path.suffix not in suffixes:
        raise ValueError(f"{path}: {publisher}'s code opens files that end in {', '.join(suffixes)}; name one of these")
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another name or remove it")


def published_tensors(
    network: nn.Module, config: BackboneConfig, image_size: int, publisher: Publisher
) -> dict[str, Tensor]:
    """A network's tensors as a public implementation names them, without wrapper prefixes, for its colour order.

    Args:
        network: what `build_backbone` returned for `config` and `image_size`; is not changed.

    Returns:
        Contiguous copies on the CPU in the network's dtype.

    Raises:
        ValueError: this network has no exact public form there.
    """
    target = backbone_skeleton(_public_config(config, image_size, publisher), image_size)
    own = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
    if isinstance(network, IR) and not isinstance(target, IR):
        own |= _neutral_tensors(own, target)
    target.load_state_dict(own, strict=True, assign=True)
    if FORMATS[publisher].color == "bgr":
        swap_colour_order_(target)
    tensors = target.state_dict()
    return {public: tensors[name].contiguous() for name, public in public_names(target).items()}


def save_published(path: Path, tensors: Mapping[str, Tensor], publisher: Publisher) -> None:
    """Write tensors of `published_tensors` as that publisher's code loads them; the file appears whole or not at all.

    AdaFace's `.ckpt` is a dictionary with a `state_dict`; all others hold the state dict itself.
    """
    prefix = FORMATS[publisher].prefixes.get(path.suffix, "")
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    with atomic_file(path) as file:
        if path.suffix == ".safetensors":
            file.write(save(named, metadata={"format": "pt"}))
        else:
            torch.save({"state_dict": named} if path.suffix == ".ckpt" else named, file)


def _public_config(config: BackboneConfig, image_size: int, publisher: Publisher) -> BackboneConfig:
    """What the public code must build for these tensors."""
    if config.width != 1.0 or image_size != PUBLIC_IMAGE_SIZE:
        raise ValueError(
            f"this {config.arch} has width {config.width} and images of {image_size} pixels; public code builds it at "
            f"width 1 for {PUBLIC_IMAGE_SIZE} pixels alone"
        )
    form = _form_at(publisher, config)
    if form is None:
        takers = [name for name in FORMATS if _form_at(name, config) is not None]
        network = f"{config.arch} with squeeze and excitation" if config.se else config.arch
        advice = f"choose {' or '.join(takers)}" if takers else "nobody publishes it"
        raise ValueError(f"{publisher} has no exact form of {network}; {advice}")
    return form


def _form_at(publisher: Publisher, config: BackboneConfig) -> BackboneConfig | None:
    if publisher in publishers_of(config):
        return config
    twin = _IRESNET_OF.get(config.arch)
    if twin is None or publisher not in publishers_of(BackboneConfig(arch=twin)):
        return None
    return BackboneConfig(arch=twin, embedding_dim=config.embedding_dim)


def _neutral_tensors(own: Mapping[str, Tensor], target: nn.Module) -> dict[str, Tensor]:
    """What an IResNet has and an IR has not, so that it changes nothing but rounding."""
    weight = own["stem.conv.weight"]
    channels, dtype = weight.shape[0], weight.dtype
    shortcut = "stages.0.0.shortcut"
    norm = target.get_submodule(f"{shortcut}.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    count = torch.zeros((), dtype=torch.int64)
    embedding_dim = own["embed.norm.running_mean"].shape[0]
    return {
        f"{shortcut}.conv.weight": torch.eye(channels, dtype=dtype)[:, :, None, None],  # (out, in, 1, 1)
        f"{shortcut}.norm.weight": torch.ones(channels, dtype=dtype),
        f"{shortcut}.norm.bias": torch.zeros(channels, dtype=dtype),
        f"{shortcut}.norm.running_mean": torch.zeros(channels, dtype=dtype),
        # x / sqrt(variance + eps) is x
        f"{shortcut}.norm.running_var": torch.full((channels,), 1.0 - norm.eps, dtype=dtype),
        f"{shortcut}.norm.num_batches_tracked": count,
        "embed.norm.weight": torch.ones(embedding_dim, dtype=dtype),
        "embed.norm.bias": torch.zeros(embedding_dim, dtype=dtype),
    }
