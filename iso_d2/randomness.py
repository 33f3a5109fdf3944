"""Random numbers that depend on a seed and a position alone, not on what was drawn before.

A training that goes on from step n draws what an undisturbed one draws there, without stored random states.
"""

import contextlib
import random

import numpy as np
import torch


def derived_seed(*numbers):
    """int below 2^63: a seed for each sequence of non-negative ints, such as (seed, process, step)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def seed_generators(*numbers, cuda=False):
    """Seed the global generators of Python, NumPy and PyTorch by `derived_seed`.

    Args:
        *numbers (int): as of :func:`derived_seed`.
        cuda (bool): the generator of the current CUDA device, too.
    """
    seed = derived_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def seeded(*numbers):
    """Seed the global generators of the CPU as `seed_generators`, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_generators(*numbers)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
