"""What is refused once the models' files are known, before any weights are loaded."""

import pytest

from local_distill.errors import UserError
from local_distill.inputs import _check_engine
from local_distill.models.files import open_model


def test_continuous_batching_needs_a_head_of_shared_tokens(folders):
    student = open_model("--student_model", str(folders["student"]), trust_remote_code=False)
    rows = student.config.vocab_size
    _check_engine("continuous", student, rows)
    _check_engine("hf", student, rows - 5)
    with pytest.raises(
        UserError, match=rf"^--rollouts continuous: .* {rows} rows, of which {rows - 5} .* --rollouts hf"
    ):
        _check_engine("continuous", student, rows - 5)
