"""Out of memory where a micro-batch cannot be cut: the message has the number to give."""

import pytest
import torch

from local_distill.batch import TokenBatch
from local_distill.errors import UserError
from local_distill.train_on_policy_local import ending_in_one_line
from local_distill.training.device_memory import score


class Full:
    def score(self, _):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")


class Broken:
    def score(self, _):
        raise RuntimeError("a shape is wrong")


def batch(rollouts):
    ids = torch.ones(rollouts, 10, dtype=torch.long)
    tokens = rollouts * 4
    return TokenBatch(ids, torch.ones_like(ids), *(torch.zeros(tokens) for _ in range(3)), (4,) * rollouts)


@pytest.mark.parametrize(
    ("rollouts", "said"),
    [
        (4, "on a micro-batch of 40 tokens; give 20; there is no checkpoint yet"),
        (1, "on a single rollout of 10 tokens; lower --max_new_tokens or --max_prompt_tokens; there is no"),
    ],
)
def test_scoring_that_does_not_fit_ends_the_run_with_the_number_to_give(tmp_path, rollouts, said):
    start = r"^--microbatch_tokens: scoring by the teacher ran out of memory"
    with pytest.raises(UserError, match=start) as ended, ending_in_one_line(tmp_path):
        score(Full(), batch(rollouts))
    assert said in str(ended.value)
    assert ended.value.alone, "other processes may wait for this one inside of a sharded model"


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="a shape is wrong"), ending_in_one_line(tmp_path):
        score(Broken(), batch(2))
