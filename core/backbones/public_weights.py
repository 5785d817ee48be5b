"""Strict conversion of published state dicts into our own networks.

Public networks name their tensors in four ways, ours have one: each of our networks says its public names by
`NameRules`, beside its own code. Nothing is guessed: a tensor that is missing, not expected or of another shape is an
error that names all of them, because a teacher of which one layer stayed random still trains a student, only a worse
one.

Source: key names of insightface arcface_torch, AdaFace, CVLface and AdaDistill.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_MAX_WRAPPERS = 16
_COUNTER = ".num_batches_tracked"
_PROBLEMS_SHOWN = 40
_NOT_EXPECTED = "not expected"
_READABLE_DTYPES: Final = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8}
)


def convert_public_weights(public: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a public state dict under the names of `network`, one of ours, which is not changed.

    Args:
        public: state dict of the public implementation of the same architecture, image size and embedding length;
            what wrappers put before the names is removed first (`strip_wrappers`), and a head over classes beside the
            network is left out, with a warning.
        network: what `build_backbone` returns; may be on any device or dtype. Tensors keep the dtype they come in.

    Raises:
        ValueError: tensors are missing, not expected, of another shape or not finite; the text lists them.
        TypeError: `network` is none of our backbones.
    """
    own = network.state_dict()
    names = public_names(network)
    bare, beside = strip_wrappers(public, names.values())
    bare = {name: _as_counter(tensor) if name.endswith(_COUNTER) else tensor for name, tensor in bare.items()}
    # Batch norms count their batches for an average that no network here uses; not everyone saves it.
    for public_name in names.values():
        if public_name.endswith(_COUNTER):
            bare.setdefault(public_name, torch.zeros((), dtype=torch.int64))
    expected_names = set(names.values())
    strangers = {name: tensor for name, tensor in bare.items() if name not in expected_names} | beside
    roots = {public.partition(".")[0] for public in names.values()}
    linear = own.get("embed.linear.weight")
    candidates = {name: strangers[name] for name in strangers if name in beside or name.partition(".")[0] not in roots}
    heads = [] if linear is None else _heads_in(candidates, linear.shape[0])
    if heads:
        listed = ", ".join(f"{name[:80]} {list(strangers[name].shape)}" for name in heads[:8])
        logger.warning("left out, as no part of the network (a head over classes, or single numbers): %s", listed)
    problems = [f"missing {public}" for public in names.values() if public not in bare]
    problems += [f"{_NOT_EXPECTED} {name} {list(strangers[name].shape)}" for name in strangers if name not in heads]
    converted = {name: bare[public] for name, public in names.items() if public in bare}
    for name, tensor in converted.items():
        if tensor.shape != own[name].shape:
            expected = list(own[name].shape)
            problems.append(f"{names[name]} is {list(tensor.shape)}, this network needs {expected}")
        elif tensor.layout != torch.strided or tensor.dtype not in _READABLE_DTYPES or tensor.is_meta:
            problems.append(f"{names[name]} is no plain tensor of numbers: {tensor.layout}, {tensor.dtype}")
        elif tensor.is_floating_point() != own[name].is_floating_point():
            problems.append(f"{names[name]} is {tensor.dtype}, this network needs {own[name].dtype}")
        elif not torch.isfinite(tensor.float()).all():
            problems.append(f"{names[name]} holds values that are not finite")
    if problems:
        raise ValueError(_report(problems, len(own)))
    return converted


def load_public_weights(network: nn.Module, public: Mapping[str, Tensor]) -> None:
    """Copy a public state dict into `network`; on an error, see `convert_public_weights`, it is left as it was."""
    network.load_state_dict(convert_public_weights(public, network))


def public_names(network: nn.Module) -> dict[str, str]:
    """Return, for every tensor of `network`'s state dict in order, its name in the public implementation.

    Raises:
        TypeError: `network` is none of our backbones.
    """
    rules = getattr(network, "name_rules", None)  # as `backbone_skeleton` found them in the registry
    if not isinstance(rules, NameRules):
        raise TypeError(f"no public names are known for {type(network).__name__}")
    blocks_per_stage = [len(list(stage.children())) for stage in getattr(network, "stages", ())]
    return {name: _public_name(name, rules, blocks_per_stage) for name in network.state_dict()}


def strip_wrappers(public: Mapping[str, Tensor], names: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part `public` into the tensors of a network, without what wrappers put before their names, and those beside it.

    Args:
        names: of the network that is looked for.
    """
    prefixes = wrapper_prefixes(public, names)
    prefix = min(prefixes, key=lambda prefix: (-prefixes[prefix], len(prefix)), default="")
    inside = {name.removeprefix(prefix): tensor for name, tensor in public.items() if name.startswith(prefix)}
    return inside, {name: tensor for name, tensor in public.items() if not name.startswith(prefix)}


def wrapper_prefixes(public: Iterable[str], names: Iterable[str]) -> Counter[str]:
    """How many of a network's names stand in `public` behind each prefix: `module.`, `model._orig_mod.`, any other."""
    wanted, found = set(names), Counter[str]()
    for name in public:
        parts = name.split(".", _MAX_WRAPPERS)
        for first in range(len(parts)):
            bare = ".".join(parts[first:])
            if bare in wanted:
                found[name[: len(name) - len(bare)]] += 1
    return found


def swap_colour_order_(network: nn.Module) -> None:
    """Make a network trained on BGR images take RGB ones, or the reverse, by reordering its first convolution."""
    with torch.no_grad():
        weight = network.get_parameter("stem.conv.weight")  # (channels, 3, 3, 3)
        weight.copy_(weight.flip(1))


def _as_counter(tensor: Tensor) -> Tensor:
    """A count of batches as the network has it; casting a state dict to a dtype casts it too."""
    plain = tensor.numel() == 1 and tensor.dtype in _READABLE_DTYPES and not tensor.is_meta
    return tensor.reshape(()).to(torch.int64) if plain else tensor


def _heads_in(strangers: Mapping[str, Tensor], embedding_dim: int) -> list[str]:
    """Names of class centres or of a classifier, (C, D) or (D, C), of its bias, (C,), and of single numbers."""
    shapes = set[tuple[int, ...]]()
    for tensor in strangers.values():
        if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1] and embedding_dim in tensor.shape:
            classes = tensor.shape[0] + tensor.shape[1] - embedding_dim
            shapes |= {(classes, embedding_dim), (embedding_dim, classes), (classes,)}
    return [name for name, tensor in strangers.items() if tuple(tensor.shape) in shapes or tensor.numel() == 1]


def _report(problems: Sequence[str], expected: int) -> str:
    strangers = [problem for problem in problems if problem.startswith(_NOT_EXPECTED)]
    others = [problem for problem in problems if not problem.startswith(_NOT_EXPECTED)]
    # Some of each kind: a wrong prefix makes every tensor missing, and only the unexpected names show the prefix.
    strangers_shown = strangers[: max(_PROBLEMS_SHOWN // 2, _PROBLEMS_SHOWN - len(others))]
    shown = [f"  {problem}" for problem in [*others[: _PROBLEMS_SHOWN - len(strangers_shown)], *strangers_shown]]
    if len(problems) > len(shown):
        shown.append(f"  and {len(problems) - len(shown)} more")
    heading = f"state dict does not fit this network of {expected} tensors, {len(problems)} problems:"
    return "\n".join([heading, *shown])


@dataclass(frozen=True, kw_only=True, slots=True)
class NameRules:
    """How one public implementation names the modules of a network."""

    outside: Mapping[str, str]
    """Modules outside the stages: our path -> public path."""
    block: Callable[[int, int, Sequence[int]], str] = "stages.{}.{}".format
    """(stage, index in it, blocks of every stage) -> public path of a block."""
    inside: Mapping[str, str] = field(default_factory=dict)
    """Modules inside a block: our path below the block -> public path below it."""
    stem_block: str = ""
    """Public path of the blocks of a stem that has some, without their number."""


def _public_name(name: str, rules: NameRules, blocks_per_stage: Sequence[int]) -> str:
    path, _, leaf = name.rpartition(".")
    in_stage = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", path)
    in_stem = re.fullmatch(r"stem_grouped\.(\d+)\.(.+)", path)
    if in_stem is not None:
        return f"{rules.stem_block}.{in_stem[1]}.{rules.inside[in_stem[2]]}.{leaf}"
    if in_stage is None:
        return f"{rules.outside[path]}.{leaf}"
    stage, index, below = int(in_stage[1]), int(in_stage[2]), in_stage[3]
    return f"{rules.block(stage, index, blocks_per_stage)}.{rules.inside[below]}.{leaf}"
