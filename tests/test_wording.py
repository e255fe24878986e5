"""One of a thing is one thing."""

import pytest

from local_distill.wording import counted


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 prompts"), (1, "1 prompt"), (2, "2 prompts"), (1234, "1,234 prompts")]
)
def test_what_is_counted(number, words):
    assert counted(number, "prompt") == words


def test_a_plural_of_its_own():
    assert [counted(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]
