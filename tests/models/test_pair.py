"""A student and its teacher, put together before any weights are loaded."""

import pytest

from local_distill.errors import UserError
from local_distill.models.files import open_model
from local_distill.models.pair import pair_of
from tests.tiny_models import IM_END, gpt2_config, llama_config, make_tokenizer, save_model


def opened(folder, config, tokenizer=None):
    return open_model("--student_model", str(save_model(folder, config, tokenizer or make_tokenizer())), False)


def test_both_speak_the_tokens_and_hold_the_texts_that_the_smaller_one_does(tmp_path):
    known = len(make_tokenizer())
    student = opened(tmp_path / "s", llama_config(known + 64, max_position_embeddings=512))
    teacher = opened(tmp_path / "t", gpt2_config(known + 5, n_positions=128))
    pair = pair_of(student, teacher)
    assert (pair.vocab_size, pair.rows, pair.context_length) == (known + 5, known + 64, 128)
    assert pair.pad_id < pair.vocab_size


def test_without_a_teacher_a_model_is_beside_itself(tmp_path):
    student = opened(tmp_path / "s", llama_config())
    pair = pair_of(student)
    assert pair.teacher is student
    assert pair.stops.note == ""


def test_models_of_other_tokens_are_no_pair(tmp_path):
    other = make_tokenizer()
    other.add_tokens(["of its own"])
    with pytest.raises(UserError, match=r"^--teacher_model: its tokenizer differs"):
        pair_of(opened(tmp_path / "s", llama_config(512), other), opened(tmp_path / "t", llama_config(512)))


def test_completions_end_as_is_asked(tmp_path):
    base = make_tokenizer()
    base.eos_token = IM_END
    student, teacher = opened(tmp_path / "s", llama_config(), base), opened(tmp_path / "t", llama_config())
    both, own, other = (set(pair_of(student, teacher, each).stops.ids) for each in ("both", "student", "teacher"))
    assert both == own | other
    assert own != other
