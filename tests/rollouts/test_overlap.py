"""Drawing ahead: which weights, which prompts, how old, and what happens when it fails."""

import threading

import pytest
import torch

from local_distill.batch import Prompt, Rollout
from local_distill.errors import RunError
from local_distill.rollouts.overlap import OverlappedRollouts

PROMPTS = {step: [(0, Prompt((step, 1), "", "")), (1, Prompt((step, 2), "", ""))] for step in range(4)}


class Served:
    """An engine that notes which of the trainer's weights each step was drawn with."""

    def __init__(self, trainer):
        self.trainer, self.weights, self.drawn, self.fails_at = trainer, None, {}, None
        self.released = threading.Event()
        self.released.set()

    def refresh(self):
        self.weights = self.trainer.version

    def draw(self, prompts, step, finished):
        self.drawn[step] = self.weights
        self.released.wait(5)
        if step == self.fails_at:
            raise RunError("--rollouts_url: gone")
        rollouts = [
            Rollout(prompt, position, torch.tensor([step]), torch.tensor([-1.0]), "stop")
            for position, prompt in prompts
        ]
        for rollout in rollouts:
            finished(rollout)
        return rollouts


class Trainer:
    version = 0


@pytest.fixture
def parts():
    trainer = Trainer()
    served = Served(trainer)
    overlapped = OverlappedRollouts(served, PROMPTS.get, lambda: trainer.version)
    yield trainer, served, overlapped
    overlapped.close()


def test_batches_are_drawn_with_the_weights_from_before_the_update(parts):
    trainer, served, overlapped = parts
    ages = []
    for step in range(4):
        rollouts = overlapped.sample(PROMPTS[step], step)
        assert [r.completion.tolist() for r in rollouts] == [[step], [step]]
        assert [r.prompt for r in rollouts] == [prompt for _, prompt in PROMPTS[step]]
        ages.append({r.age for r in rollouts})
        trainer.version += 1
    assert ages == [{0}, {1}, {1}, {1}]
    assert served.drawn == {0: 0, 1: 0, 2: 1, 3: 2}, "and nothing past the last step"


def test_the_next_batch_is_drawn_while_this_one_trains(parts):
    _, served, overlapped = parts
    overlapped.sample(PROMPTS[0], 0)
    served.released.clear()
    overlapped.sample(PROMPTS[1], 1)  # came back although step 2 has not been drawn
    told = []
    served.released.set()
    overlapped.sample(PROMPTS[2], 2, told.append)
    assert 2 in served.drawn


def test_a_resumed_run_begins_with_fresh_samples(parts):
    trainer, served, overlapped = parts
    trainer.version = 5
    assert {r.age for r in overlapped.sample(PROMPTS[2], 2)} == {0}
    assert served.drawn[2] == 5


def test_what_fails_in_the_background_stops_the_step_that_needs_it(parts):
    _, served, overlapped = parts
    served.fails_at = 1
    overlapped.sample(PROMPTS[0], 0)
    with pytest.raises(RunError, match="gone"):
        overlapped.sample(PROMPTS[1], 1)


def test_finished_rollouts_are_told_of_from_the_background_too(parts):
    _, _, overlapped = parts
    told = []
    overlapped.sample(PROMPTS[0], 0, told.append)
    overlapped.close()
    assert [r.completion.item() for r in told] == [0, 0, 1, 1]
