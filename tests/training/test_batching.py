"""Contract 7: with pad = EOS, early stops, truncations and empty completions, the right tokens train and no other."""

import random
from itertools import product

import pytest
import torch

from local_distill.batch import Prompt, Rollout
from local_distill.training.batching import (
    LONGEST_SHARING,
    PASS_COST,
    SLOT_COST,
    MicroBatches,
    collate,
    share_of_process,
    split_by_length,
    split_by_tokens,
    split_substeps,
)

EOS = 0  # also the padding


def rollout(prompt, completion, position=0, finish="stop"):
    return Rollout(
        prompt=Prompt(tuple(prompt), "text", "test:1"),
        position=position,
        completion=torch.tensor(completion, dtype=torch.long),
        sampler_logprobs=-torch.arange(1, len(completion) + 1, dtype=torch.float32),
        finish=finish,
    )


def trained_pairs(batch):
    """(token whose hidden state predicts, token that is predicted), read back from the layout alone."""
    flat = batch.input_ids.flatten()
    return [(int(flat[p]), int(flat[p + 1]), int(t)) for p, t in zip(batch.predictors, batch.targets, strict=True)]


def test_each_completion_token_is_predicted_by_the_token_before_it():
    batch = collate([rollout([5, 6], [7, 8, EOS])], EOS)
    assert trained_pairs(batch) == [(6, 7, 7), (7, 8, 8), (8, EOS, EOS)]


def test_stop_token_trains_although_it_is_the_padding_and_nothing_else_does():
    rollouts = [
        rollout([5, 6, 9], [7, EOS]),  # stopped early
        rollout([5], [1, 2, 3, 4], finish="length"),  # truncated: no stop token to train
        rollout([EOS, 5], [EOS]),  # EOS inside the prompt must not train
        rollout([3, 4], []),  # nothing sampled
    ]
    batch = collate(rollouts, EOS)
    assert batch.lengths == (2, 4, 1, 0)
    assert batch.num_tokens == 7 == len(batch.targets) == len(batch.predictors)
    assert trained_pairs(batch) == [(9, 7, 7), (7, 0, 0), (5, 1, 1), (1, 2, 2), (2, 3, 3), (3, 4, 4), (5, 0, 0)]
    torch.testing.assert_close(batch.sampler_logprobs, torch.tensor([-1.0, -2, -1, -2, -3, -4, -1]))


def test_attention_covers_real_tokens_though_they_equal_the_padding():
    batch = collate([rollout([EOS, 5], [EOS]), rollout([1, 2, 3], [4, 5])], EOS)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_no_rollouts_give_one_padding_token_and_nothing_to_train():
    batch = collate([], EOS)
    assert batch.input_ids.shape == (1, 1)
    assert batch.num_tokens == 0
    assert batch.predictors.dtype == batch.targets.dtype == torch.long


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_split_keeps_every_rollout_once_longest_first(count):
    rollouts = [rollout([1], [2] * n) for n in (3, 1, 4, 1, 5)]
    parts = split_by_length(rollouts, count)
    assert len(parts) == count
    lengths = [len(r.completion) for part in parts for r in part]
    assert lengths == [5, 4, 3, 1, 1]
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [[9], [6], [5], [2], [2]]),
        (10, [[9], [6], [5], [2, 2]]),
        (12, [[9], [6, 5], [2, 2]]),
        (99, [[9, 6, 5, 2, 2]]),
    ],
)
def test_split_by_tokens_counts_the_padding(most, expected):
    parts = split_by_tokens([rollout([1], [2] * (n - 1)) for n in (5, 2, 9, 2, 6)], most)
    assert [[1 + len(r.completion) for r in part] for part in parts] == expected
    assert all(len(part) == 1 or collate(part, EOS).input_ids.numel() <= most for part in parts)
    assert split_by_tokens([], most) == []


def all_cuts(lengths):
    """Every way to cut a sorted list into lists that follow each other."""
    for places in product((False, True), repeat=max(0, len(lengths) - 1)):
        parts = [[lengths[0]]]
        for length, cut in zip(lengths[1:], places, strict=True):
            if cut:
                parts.append([length])
            else:
                parts[-1].append(length)
        yield parts


@pytest.mark.parametrize("seed", range(12))
def test_split_by_tokens_costs_least_of_all_ways(seed):
    chance = random.Random(seed)
    lengths = sorted((chance.choice([300, 40, 900]) + chance.randrange(200) for _ in range(8)), reverse=True)
    most = chance.choice([700, 2000, 10**6])

    def cost(parts):
        return sum(len(part) * part[0] + PASS_COST for part in parts)

    allowed = [parts for parts in all_cuts(lengths) if all(len(p) == 1 or len(p) * p[0] <= most for p in parts)]
    found = split_by_tokens([rollout([1], [2] * (n - 1)) for n in chance.sample(lengths, 8)], most)
    found_lengths = [[1 + len(r.completion) for r in part] for part in found]
    assert [n for part in found_lengths for n in part] == lengths
    assert found_lengths in allowed
    assert cost(found_lengths) == min(cost(parts) for parts in allowed)


def test_rollouts_of_unlike_length_do_not_wait_in_padding():
    parts = split_by_tokens([rollout([1], [2] * n) for n in (2000, *[20] * 30)], 10**6)
    assert [len(part) for part in parts] == [1, 30]


def test_bounded_micro_batches_are_as_many_as_the_neediest_process_has():
    rollouts = [rollout([1], [2] * 4) for _ in range(6)]
    asked = []

    def five_elsewhere(own):
        asked.append(own)
        return max(own, 5)

    parts = MicroBatches(10, five_elsewhere).split(rollouts, 1)
    assert [len(part) for part in parts] == [2, 2, 2, 0, 0]
    assert asked == [3]
    assert [len(part) for part in MicroBatches(10).split(rollouts, 4)] == [1, 1, 2, 2], "--grad_accum asks for more"
    assert [len(part) for part in MicroBatches(10).split(rollouts, 8)] == [1, 1, 1, 1, 1, 1, 0, 0]
    skewed = [rollout([1], [2] * n) for n in (99, 99, *[9] * 20)]
    for least in (1, 3, 9, 40):
        parts = MicroBatches(200).split(skewed, least)
        assert len(parts) >= least
        assert sum(len(part) for part in parts) == 22
        assert all(collate(part, EOS).input_ids.numel() <= 200 for part in parts), "the bound holds whatever is asked"
    assert [len(part) for part in MicroBatches().split(rollouts, 2)] == [3, 3]


def substep_plan(num_processes, process, *, batch_size, group_size, num_substeps, grad_accum):
    own = share_of_process(list(range(batch_size)), process, num_processes)
    rollouts = [rollout([1, position + 1], [2], position) for position, _ in own for _ in range(group_size)]
    return split_substeps(
        rollouts, batch_size=batch_size, group_size=group_size, num_substeps=num_substeps, grad_accum=grad_accum,
        num_processes=num_processes, micro_batches=MicroBatches(), pad_id=EOS,
    )  # fmt: skip


@pytest.mark.parametrize("grad_accum", [1, 3, 100])
@pytest.mark.parametrize("num_substeps", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [3, 4, 7])
def test_substeps_hold_the_same_prompts_for_any_number_of_processes(batch_size, num_substeps, grad_accum):
    settings = {"batch_size": batch_size, "group_size": 2, "num_substeps": num_substeps, "grad_accum": grad_accum}

    def prompts_of(num_processes):
        plans = [substep_plan(num_processes, process, **settings) for process in range(num_processes)]
        counts = {tuple(len(batches) for batches in plan) for plan in plans}
        assert len(counts) == 1, "every process must make the same number of calls"
        return [
            sorted(int(row[1]) for plan in plans for b in plan[k] if b.num_tokens for row in b.input_ids)
            for k in range(num_substeps)
        ]

    alone = prompts_of(1)
    assert sorted(p for share in alone for p in share) == sorted([p + 1 for p in range(batch_size)] * 2)
    assert all(alone), "no substep may be empty"
    assert prompts_of(2) == alone == prompts_of(3)


def test_grad_accum_makes_at_least_that_many_micro_batches_while_rollouts_last():
    plan = substep_plan(1, 0, batch_size=4, group_size=2, num_substeps=1, grad_accum=3)
    assert [len(batches) for batches in plan] == [3]
    plan = substep_plan(1, 0, batch_size=4, group_size=2, num_substeps=1, grad_accum=100)
    assert [len(batches) for batches in plan] == [8]


def test_rollouts_of_one_prompt_stay_together_where_prompts_are_shared():
    long, short = list(range(1, 41)), list(range(50, 70))
    rollouts = [rollout(prompt, [1] * n) for n in (4, 5, 6, 7) for prompt in (long, short)]
    parts = MicroBatches(75, shares_prompts=True).split(rollouts, 1, share=True)
    assert sorted(map(id, (each for part in parts for each in part))) == sorted(map(id, rollouts))
    assert [{each.prompt.ids for each in part} for part in parts] == [{tuple(long)}, {tuple(short)}]
    for part in parts:
        assert collate(part, 0, share=True).tokens_read <= 75
    assert len(MicroBatches(75).split(rollouts, 1)) > 4


def test_a_group_larger_than_a_micro_batch_is_cut():
    rollouts = [rollout(list(range(1, 41)), [1] * 10) for _ in range(8)]
    parts = MicroBatches(80, shares_prompts=True).split(rollouts, 1, share=True)
    assert [len(part) for part in parts] == [3, 3, 2]
    assert all(40 + 9 * len(part) + SLOT_COST * (40 + 2 * 10) * len(part) <= 80 for part in parts)
    assert [len(part) for part in MicroBatches(None, shares_prompts=True).split(rollouts, 3, share=True)] == [2, 2, 4]


def test_prompts_are_not_shared_where_that_saves_little():
    alone = [rollout([i, i + 1, i + 2], [1, 2, 3]) for i in range(8)]
    bound = MicroBatches(30, shares_prompts=True)
    assert bound.split(alone, 1, share=True) == MicroBatches(30).split(alone, 1)
    assert collate(alone, 0, share=True).shared is None
    long = [rollout(list(range(1, 401)), [1] * (LONGEST_SHARING + 1)) for _ in range(8)]
    assert collate(long, 0, share=True).shared is None
    assert collate([], 0, share=True).shared is None
    empty = [rollout(list(range(1, 401)), completion) for completion in ([1, 2], [], [3])]
    assert collate(empty, 0, share=True).shared is None


def test_one_long_completion_does_not_pad_the_attention_of_all_others():
    short = [rollout([i] * 100, [1] * 60) for i in range(1, 9) for _ in range(8)]
    long = [rollout([9] * 100, [1] * 1000) for _ in range(2)]
    parts = MicroBatches(16_384, shares_prompts=True).split(short + long, 1, share=True)
    assert [len(part) for part in parts] == [2, 64]
    assert max(len(each.completion) for each in parts[1]) == 60


def test_rows_are_read_one_by_one_where_nobody_asks_for_shared_prompts():
    rollouts = [rollout(list(range(1, 41)), [1] * 10) for _ in range(8)]
    assert MicroBatches(100, shares_prompts=True).split(rollouts, 1) == MicroBatches(100).split(rollouts, 1)
