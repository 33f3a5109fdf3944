import random

import numpy as np
import torch

from iso_d2.randomness import derived_seed, seed_generators, seeded


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seeds_differ_by_each_number_and_their_order():
    numbers = [(s, r, i) for s in range(4) for r in range(4) for i in range(50)]
    seeds = {derived_seed(*n) for n in numbers}
    assert len(seeds) == len(numbers)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_what_is_drawn_depends_on_the_numbers_alone():
    seed_generators(1, 0, 7)
    first = draw()
    draw()
    seed_generators(1, 0, 7)
    assert draw() == first
    seed_generators(1, 0, 8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_the_states_before_come_back_after_an_error_too():
    seed_generators(3)
    wanted = draw(), draw()
    seed_generators(3)
    found = [draw()]
    try:
        with seeded(5):
            draw()
            raise KeyError
    except KeyError:
        found.append(draw())
    assert tuple(found) == wanted
