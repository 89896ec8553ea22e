"""Random numbers as a pure function of (seed, step): a resumed run needs no generator state."""

import hashlib

import torch


def step_generator(seed: int, step: int, *, heldout: bool = False) -> torch.Generator:
    """The generator of one step of one seed.

    The lowest bit of the generator's seed is reserved for `heldout`. So a training batch and a
    held-out batch never start from the same state, for any seeds and steps.

    Example:
        >>> a, b = step_generator(0, 7), step_generator(0, 7)
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    # torch's CPU generator uses only 32 bits of its seed.
    number = int.from_bytes(digest[:4], "big")
    return torch.Generator().manual_seed(number & ~1 | heldout)
