"""Random numbers that are a function of what they are for, so that nothing drawn before can change them."""

import hashlib

import torch


def generator(seed: int, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers that are a function of (seed, purpose, step)."""
    key = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key, "little") >> 1)
