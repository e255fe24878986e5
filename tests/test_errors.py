"""What others' exceptions say, in one line."""

import pytest
import torch

from local_distill.errors import UserError, first_sentence, one_line, with_type, without_advice
from local_distill.train_on_policy_local import ending_in_one_line


def test_line_breaks_go_and_what_is_too_long_is_cut():
    error = ValueError("a mapping\n  in line 1\tis missing")
    assert one_line(error) == "a mapping in line 1 is missing"
    assert one_line(error, 10) == "a mapping…"
    assert len(one_line(ValueError("a" * 999))) == 240
    assert one_line(ValueError("a" * 999), width=None) == "a" * 999


def test_an_exception_without_words_is_told_by_its_type():
    assert one_line(AssertionError()) == "AssertionError"
    assert with_type(AssertionError(" \n")) == "AssertionError: no message"


def test_of_several_lines_the_first_stands_beside_the_type():
    assert with_type(RuntimeError("out of memory\nat frame 0")) == "RuntimeError: out of memory"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no such folder.\nGive another one."), "no such folder."),
        (
            ValueError("Unknown model. Should have a `type`,\nsuch as a"),
            "Unknown model. Should have a `type`, such as a",
        ),
        (ValueError("needs version 4.5, e.g. that of today"), "needs version 4.5, e.g. that of today"),
        (ValueError("loading:\n\tsize mismatch"), "loading: size mismatch"),
        (KeyError("hidden_size"), "KeyError: 'hidden_size'"),
    ],
)
def test_advice_in_further_lines_is_left_out(error, said):
    assert first_sentence(error) == said


def test_what_torch_advises_after_memory_ran_out_is_left_out():
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. If reserved memory is large, try …"
    assert without_advice(RuntimeError(said)) == "CUDA out of memory"
    assert without_advice(RuntimeError("DefaultCPUAllocator: can't allocate 2.5 GiB")) == (
        "DefaultCPUAllocator: can't allocate 2.5 GiB"
    )


def test_a_run_that_lacks_memory_ends_with_the_flag_to_lower(tmp_path):
    with pytest.raises(UserError) as ended, ending_in_one_line(tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    begins = "--microbatch_tokens: out of memory while loading, scoring or evaluating (CUDA out of memory); lower it"
    assert str(ended.value).startswith(begins)
    assert ended.value.alone
