"""Counter-based randomness: every draw is a pure function of (seed, purpose, step, sample id)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Randomness:
    """A stream of random numbers that does not depend on ranks, micro-batches, devices or call order.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for; two purposes are independent.
        step: training step, or any other non-negative counter below 2**32.

    Reference:
        Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011 (Philox4x32-10).
    """

    seed: int
    purpose: str = ""
    step: int = 0

    def child(self, purpose: str) -> Randomness:
        """Return an independent stream for a narrower purpose."""
        return replace(self, purpose=f"{self.purpose}/{purpose}")

    def at(self, step: int) -> Randomness:
        """Return the same stream at another step."""
        return replace(self, step=step)

    def uniform(self, ids: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw (B, *shape) numbers in [0, 1) on the device of ``ids``, (B,) int64, one stream per id."""
        bits = self._bits(ids, math.prod(shape))
        # 24 bits are exact in float32; more could round up to 1
        return (bits >> 8).to(dtype).mul_(2.0**-24).view(len(ids), *shape)

    def normal(self, ids: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw (B, *shape) standard normal numbers (Box and Muller) on the device of ``ids``."""
        size = math.prod(shape)
        half = (size + 1) // 2
        bits = self._bits(ids, 2 * half).to(torch.float64)
        # + 1 keeps the logarithm's argument above 0
        radius = torch.sqrt(-2 * torch.log((bits[:, :half] + 1) * 2.0**-32))
        angle = bits[:, half:] * (2 * math.pi * 2.0**-32)
        pair = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
        return pair[:, :size].to(dtype).reshape(len(ids), *shape)

    def integers(self, ids: Tensor, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Draw (B, *shape) integers in [0, high), high at most 2**32, on the device of ``ids``."""
        bits = self._bits(ids, math.prod(shape))
        return torch.div(bits * high, 1 << 32, rounding_mode="floor").view(len(ids), *shape)

    def permutation(self, n: int) -> Tensor:
        """Return a random order of 0 ... n-1, (n,) int64."""
        keys = self._bits(torch.arange(n), 2)
        # 63-bit sort keys: with 32 bits, ties would bias large permutations towards the given order
        return torch.argsort((keys[:, 0] << 31) ^ keys[:, 1], stable=True)

    def generator(self, device: torch.device | str = "cpu", item: int = 0) -> torch.Generator:
        """Return a generator seeded from this stream, for libraries that need one per item."""
        # 7 bytes: manual_seed takes a signed 64-bit integer
        digest = hashlib.blake2b(repr((self.seed, self.purpose, self.step, item)).encode(), digest_size=7)
        return torch.Generator(device).manual_seed(int.from_bytes(digest.digest(), "little"))

    @contextmanager
    def seeding(self) -> Iterator[None]:
        """Seed PyTorch's global generator while the body runs, for code that draws from it; restore it afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.generator().initial_seed())
            yield

    def _bits(self, ids: Tensor, size: int) -> Tensor:
        """Return (B, size) integers in [0, 2**32) as int64."""
        key = hashlib.blake2b(repr((self.seed, self.purpose)).encode(), digest_size=8).digest()
        blocks = max(1, -(-size // 4))  # each block of the counter gives four words
        counter = torch.empty(4, len(ids), blocks, dtype=torch.int64, device=ids.device)
        counter[0] = torch.arange(blocks, device=ids.device)
        counter[1] = self.step & _MASK
        counter[2] = (ids & _MASK)[:, None]
        counter[3] = ((ids >> 32) & _MASK)[:, None]
        words = philox(counter, int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little"))
        return words.permute(1, 2, 0).reshape(len(ids), 4 * blocks)[:, :size]


def philox(counter: Tensor, key0: int, key1: int) -> Tensor:
    """Philox4x32-10 on counters (4, ...) of 32-bit words held in int64; returns words of the same shape."""
    c0, c1, c2, c3 = counter.unbind()
    # the products of two 32-bit words fill 64 bits; >> keeps the sign of an int64, which the mask removes
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ key0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ key1,
            product0 & _MASK,
        )
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3))
