"""Every random stream of a run, derived from (seed, purpose, rank, epoch).

Streams are independent because their seeds are hashes: asking for one more stream never shifts another, and nothing but
the recipe's seed has to be remembered. Sample order, augmentation, initialisation and dropout each have a purpose.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str, *, rank: int = 0, epoch: int = 0) -> int:
    """A seed in [0, 2^63) for one stream; equal arguments give equal seeds on every machine.

    Args:
        seed: the recipe's seed.
        purpose: names the stream, for example `sample_order`, `mirror`, `student`, `dropout`.
        rank: leave at 0 for streams that all ranks share.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{rank}/{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, purpose: str, *, rank: int = 0, epoch: int = 0) -> torch.Generator:
    """A CPU generator for the stream."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, rank=rank, epoch=epoch))


def seed_process(seed: int, *, rank: int) -> None:
    """Seed torch's global generators of this process (dropout draws from them), each rank its own stream."""
    torch.manual_seed(derive_seed(seed, "dropout", rank=rank))


def random_state(device: torch.device) -> dict[str, str]:
    """torch's global random state of this process, as hexadecimal text: `cpu`, and `cuda` on a CUDA device."""
    state = {"cpu": _to_hex(torch.get_rng_state())}
    if device.type == "cuda":
        state["cuda"] = _to_hex(torch.cuda.get_rng_state(device))
    return state


def restore_random_state(state: dict[str, str], device: torch.device) -> None:
    """Put back what `random_state` returned; a part saved on another kind of device is left as it is."""
    torch.set_rng_state(_from_hex(state["cpu"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_from_hex(state["cuda"]), device)


def generator_states(device: torch.device) -> tuple[Tensor, ...]:
    """State of torch's global generators that a network on `device` draws from: the CPU's, and the device's on CUDA.

    Both are kept by the host, seed and offset, so that nothing waits for the device.
    """
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def restore_generator_states(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Put back what `generator_states` returned for the same device."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _to_hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
