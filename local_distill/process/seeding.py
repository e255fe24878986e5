"""What is drawn at random in a run, each as a function of named integers alone: nothing is kept of it in a checkpoint.

    the order of prompts and questions    seed, epoch                                  shuffled
    a rollout, an answer of a chat        seed, step, position, place in the group     rollout_stream, rollout_seed
    rollouts that are drawn together      seed, step, process                          process_seed
    dropout in an adapter                 seed, step, process                          seed_dropout
    the start of an adapter               seed                                         seed_adapter

The ways of making one number of several differ, and stay as they are: the same settings draw what they always drew, and
a run that an earlier version began goes on bit for bit.
"""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=4)
def shuffled(size: int, seed: int, epoch: int = 0) -> tuple[int, ...]:
    """Return a permutation of range(size)."""
    # Only random() is promised to be the same in every Python version; shuffle() is not.
    draw = random.Random(f"seed {seed} epoch {epoch}" if epoch else f"seed {seed}").random
    return tuple(sorted(range(size), key=[draw() for _ in range(size)].__getitem__))


def rollout_stream(length: int, seed: int, step: int, position: int, member: int) -> Tensor:
    """Return (length,) float64 draws from [0, 1), one for each token of a rollout; a longer one begins with the same.

    position: of the prompt in the step's batch. member: the rollout's place in the prompt's group.
    """
    generator = torch.Generator().manual_seed(rollout_seed(seed, step, position, member))
    return torch.rand(length, generator=generator, dtype=torch.float64)


def rollout_seed(seed: int, step: int, position: int, member: int) -> int:
    """Return a seed below 2⁶³ for one rollout of a sampler that draws by itself; see ``rollout_stream``."""
    return _digest(seed, step, position, member)


def process_seed(seed: int, step: int, process: int) -> int:
    """Return a seed below 2⁶³ for all rollouts that a process draws in a step."""
    return _digest(seed, step, process)


def seed_dropout(seed: int, step: int, process: int) -> None:
    """Let torch's own generators, of which dropout takes, begin anew for a step."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4096 + process) % 2**63)


def seed_adapter(seed: int) -> None:
    """Let torch's own generators, of which a new adapter is drawn, begin anew: alike on every process."""
    torch.manual_seed(seed)


def _digest(*numbers: int) -> int:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**63
