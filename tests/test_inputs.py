"""What is refused once the models' files are known, before any weights are loaded."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from local_distill.backends import sampler_of
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.models.files import open_model
from local_distill.models.pair import pair_of
from local_distill.rollouts.student_checks import check_limits


def test_continuous_batching_needs_a_head_of_shared_tokens(folders):
    pair = pair_of(open_model("--student_model", str(folders["student"]), trust_remote_code=False))
    rows = pair.student.config.vocab_size
    whole, less = (replace(pair, vocab_size=size) for size in (rows, rows - 5))

    def check(sampler, pair):
        config = TrainConfig(student_model="s", teacher_model="t", rollouts=sampler)
        sampler_of(config).check_student(config, pair, None)

    check("continuous", whole)
    check("hf", less)
    with pytest.raises(
        UserError, match=rf"^--rollouts continuous: .* {rows} rows, of which {rows - 5} .* --rollouts hf"
    ):
        check("continuous", less)


@pytest.mark.parametrize(
    ("left_out", "temperature", "refused"),
    [
        (128, 1.0, None),
        (1024, 2.0, None),
        (1025, 1.0, r"^--rollouts vllm: .* 152064 rows, .* leave out 1024 at most; use --rollouts hf"),
        (0, 2.5, r"^--temperature: 2.5 given, vLLM takes at most 2; lower it"),
    ],
)
def test_what_vllm_takes_is_asked_before_it_starts(left_out, temperature, refused):
    with pytest.raises(UserError, match=refused) if refused else nullcontext():
        check_limits(152064, 152064 - left_out, temperature)
