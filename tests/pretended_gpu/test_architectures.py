"""Of each kind of memory that models have of a text: sampled, scored and trained on a GPU as on a processor."""

import copy

import pytest
import torch

from local_distill.head.chunked_loss import summed_loss
from local_distill.models.scorer import TokenScorer
from local_distill.teachers.local import LocalTeacher
from local_distill.teachers.offload import offloaded
from local_distill.training.batching import collate
from tests.models.test_scorer import CONFIGS, weighed
from tests.pretended_gpu.device import missing, pretended_gpu
from tests.rollouts.test_checking import RIGHT
from tests.rollouts.test_hf import PROMPTS, V, engine
from tests.tiny_models import make_model

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(autouse=True)
def _gpu():
    with pretended_gpu():
        yield


def passed_through(model):
    """What is drawn, what scoring says of it, and its gradient; on the host."""
    device = next(model.parameters()).device
    rollouts = engine(model, group_size=2, max_new_tokens=6).sample(list(enumerate(PROMPTS)), step=0)
    batch = collate(rollouts, 0).to(device)
    states = TokenScorer(model, V).states(batch)
    upstream = torch.ones(len(batch.targets), device=device)
    found = summed_loss(states.hidden, states.head, weighed(batch.targets, upstream), ("logprobs",))
    found.total.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return rollouts, found.stats["logprobs"].cpu(), gradients


@pytest.mark.parametrize("name", RIGHT)
def test_numbers_are_those_of_a_processor(name):
    here = copy.deepcopy(there := make_model(RIGHT[name])).to("cuda")
    (ours, scored, moved), (theirs, expected, wanted) = map(passed_through, (here, there))
    assert [r.completion.tolist() for r in ours] == [r.completion.tolist() for r in theirs]
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-4)
    assert moved.keys() == wanted.keys()
    for parameter in moved:
        torch.testing.assert_close(moved[parameter], wanted[parameter], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", {**CONFIGS, **RIGHT})
def test_weights_that_visit_the_gpu(name):
    model = make_model({**CONFIGS, **RIGHT}[name])
    batch = collate(engine(model, group_size=1, max_new_tokens=6).sample(list(enumerate(PROMPTS)), step=0), 0)
    with torch.no_grad():
        expected = TokenScorer(model, V)(batch).logprobs
    gpu = torch.device("cuda")
    found = LocalTeacher(offloaded(TokenScorer(model, V), gpu), gpu).score(batch).signal.logprobs
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)
