"""The same settings draw what they always drew: a run that an earlier version began goes on bit for bit."""

import torch
from torch import nn

from local_distill.process.seeding import (
    process_seed,
    rollout_seed,
    rollout_stream,
    seed_adapter,
    seed_dropout,
    shuffled,
)


def test_streams_depend_on_every_part_of_the_key_and_nothing_else():
    torch.manual_seed(1)
    first = rollout_stream(5, 1, 2, 3, 4)
    torch.manual_seed(2)
    assert torch.equal(first, rollout_stream(5, 1, 2, 3, 4))
    others = [
        rollout_stream(5, *key) for key in [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (12, 3, 4, 0)]
    ]
    assert not any(torch.equal(first, other) for other in others)
    assert process_seed(12, 3, 4) != rollout_seed(1, 2, 3, 4)
    assert torch.equal(first[:3], rollout_stream(3, 1, 2, 3, 4)), "a longer completion begins with the same draws"


def test_the_order_of_prompts_is_what_it_always_was():
    assert shuffled(8, seed=7) == (0, 6, 5, 1, 2, 3, 4, 7)
    assert shuffled(8, seed=7, epoch=2) == (3, 7, 5, 2, 1, 6, 4, 0)


def test_rollouts_are_drawn_as_ever():
    assert rollout_seed(7, 3, 2, 1) == 3211074457419243512
    assert rollout_seed(0, 0, 0, 0) == 3085699867103621225
    assert process_seed(7, 3, 2) == 448027660521203130
    assert rollout_stream(3, 7, 3, 2, 1).tolist() == [0.8070169308122278, 0.237534875379818, 0.9094959992789892]


def test_dropout_and_the_adapter_begin_as_ever():
    seed_dropout(7, 3, 2)
    assert torch.initial_seed() == 28672098306
    seed_dropout(2**63 - 1, 5, 1)
    assert torch.initial_seed() == 9223372032758784001
    seed_adapter(7)
    assert torch.initial_seed() == 7


def test_dropout_is_another_in_each_step_and_process_and_the_same_again():
    def dropped(*numbers: int) -> list[float]:
        seed_dropout(*numbers)
        return nn.functional.dropout(torch.ones(64), 0.5).tolist()

    assert dropped(0, 1, 0) == dropped(0, 1, 0)
    assert dropped(0, 1, 0) != dropped(0, 2, 0)
    assert dropped(0, 1, 0) != dropped(0, 1, 1)
