"""Whether two models speak the same tokens, and what ends a completion."""

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, PreTrainedTokenizerFast

from local_distill.errors import UserError
from local_distill.models.tokenization import (
    check_same_tokens,
    pad_token,
    shared_vocabulary,
    stop_tokens,
    unsampled_tokens_note,
)
from tests.tiny_models import EOS, IM_END, llama_config, make_tokenizer


def test_the_same_vocabulary_passes_whatever_the_models_pad_it_to():
    tokenizer = make_tokenizer()
    check_same_tokens(tokenizer, make_tokenizer())
    known = len(tokenizer)
    assert shared_vocabulary(llama_config(known + 5), llama_config(known + 64), tokenizer) == known + 5
    assert shared_vocabulary(llama_config(known + 64), llama_config(known), tokenizer) == known


def test_a_teacher_may_know_more_tokens_a_student_may_not():
    larger = make_tokenizer()
    larger.add_tokens(["<think>"])
    check_same_tokens(make_tokenizer(), larger)
    with pytest.raises(UserError, match=r"1 of \d+ tokens, such as '<think>'.*not there to the teacher"):
        check_same_tokens(larger, make_tokenizer())


def changed(**model_parts):
    """The usual tokenizer with parts of its BPE model replaced."""
    spec = json.loads(make_tokenizer().backend_tokenizer.to_str())
    spec["model"].update(model_parts)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token=EOS)


def test_different_vocabularies_of_the_same_size_are_refused():
    ours = make_tokenizer()
    vocabulary = {token: index for token, index in ours.get_vocab().items() if index > 2}
    first, second = ours.convert_ids_to_tokens([250, 251])
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    theirs = changed(vocab={**vocabulary, EOS: 0, "<|im_start|>": 1, IM_END: 2})
    assert len(theirs) == len(ours)
    with pytest.raises(UserError, match=r"--teacher_model: its tokenizer differs from the student's: 2 of"):
        check_same_tokens(ours, theirs)


def test_the_same_tokens_with_other_merges_are_refused():
    with pytest.raises(UserError, match="splits text differently"):
        check_same_tokens(make_tokenizer(), changed(merges=[]))


def test_a_model_with_fewer_logits_than_tokens_is_refused():
    tokenizer = make_tokenizer()
    with pytest.raises(UserError, match="--student_model: has logits for 200 tokens"):
        shared_vocabulary(llama_config(200), llama_config(300), tokenizer)


def test_a_tokenizer_of_added_tokens_alone_is_refused_where_they_do_not_fit():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")))
    tokenizer.add_tokens(["a", *map(str, range(20))])
    with pytest.raises(UserError, match="has logits for 10 tokens, its tokenizer knows 21"):
        shared_vocabulary(llama_config(vocab_size=10), llama_config(vocab_size=10), tokenizer)


@pytest.mark.parametrize(("rows", "teachers_rows"), [(300, 300), (300, 320), (320, 300), (301, 300)])
def test_tokens_that_were_added_behind_a_head_are_never_sampled(rows, teachers_rows):
    """Gemma 3's <image_soft_token> has an id one above the head's last row."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert tokenizer.convert_tokens_to_ids("<image_soft_token>") == 300
    check_same_tokens(tokenizer, tokenizer)
    assert shared_vocabulary(llama_config(rows), llama_config(teachers_rows), tokenizer, tokenizer) == 300
    assert unsampled_tokens_note(tokenizer, 300).endswith("no prompt may have them: <image_soft_token>")
    assert unsampled_tokens_note(tokenizer, 301) == ""


@pytest.mark.parametrize(("rows", "teachers_rows"), [(300, 300), (301, 300), (320, 300), (301, 320), (320, 320)])
def test_a_padding_token_of_the_students_alone_is_neither_sampled_nor_asked_of_the_teacher(rows, teachers_rows):
    ours, theirs = make_tokenizer(), make_tokenizer()
    ours.add_special_tokens({"pad_token": "[PAD]"})
    check_same_tokens(ours, theirs)
    size = shared_vocabulary(llama_config(rows), llama_config(teachers_rows), ours, theirs)
    assert size == ours.convert_tokens_to_ids("[PAD]") == 300
    stops = stop_tokens(ours, GenerationConfig(), theirs, GenerationConfig(), "both", size)
    assert pad_token(ours, stops, size) == ours.eos_token_id
    assert "[PAD]" in unsampled_tokens_note(ours, size)


def test_special_tokens_of_the_students_alone_that_it_needs_are_refused():
    theirs = make_tokenizer()
    moved = make_tokenizer()
    moved.add_special_tokens({"pad_token": "[PAD]"})
    known_elsewhere = make_tokenizer()
    known_elsewhere.add_special_tokens({"additional_special_tokens": ["<x>", "[PAD]"]})
    with pytest.raises(UserError, match=r"1 of 301 tokens, such as '\[PAD\]', id 300 to the student and id 301"):
        check_same_tokens(moved, known_elsewhere)
    ends = make_tokenizer()
    ends.add_special_tokens({"eos_token": "<|end|>"})
    with pytest.raises(UserError, match=r"such as '<\|end\|>', id 300 to the student and not there"):
        check_same_tokens(ends, theirs)


def test_ids_that_no_model_can_sample_end_nothing():
    tokenizer = make_tokenizer()
    both = GenerationConfig(eos_token_id=[0, 9999, -1])
    assert stop_tokens(tokenizer, both, tokenizer, both, "both").ids == (0,)
    instruct = GenerationConfig(eos_token_id=[0, 310])  # of a teacher with more tokens, in a row that the student has
    stops = stop_tokens(tokenizer, both, tokenizer, instruct, "both", 320)
    assert stops.ids == (0, 310)
    tokenizer.eos_token = None
    beyond = GenerationConfig(eos_token_id=300)
    with pytest.raises(UserError, match="no end-of-sequence token is defined among the 300 tokens"):
        stop_tokens(tokenizer, beyond, tokenizer, beyond, "both", 300)


@pytest.mark.parametrize(("choice", "expected"), [("both", {EOS, IM_END}), ("student", {EOS}), ("teacher", {IM_END})])
def test_different_stop_tokens_are_found_and_said(choice, expected):
    base, instruct = make_tokenizer(), make_tokenizer(chat=True)
    stops = stop_tokens(base, GenerationConfig(), instruct, GenerationConfig(), choice)
    assert set(base.convert_ids_to_tokens(list(stops.ids))) == expected
    assert EOS in stops.note
    assert IM_END in stops.note
    assert f"--stop_tokens {choice}" in stops.note


def test_generation_settings_count_and_agreement_needs_no_words():
    tokenizer = make_tokenizer()
    both = GenerationConfig(eos_token_id=[0, 2])
    stops = stop_tokens(tokenizer, both, tokenizer, both, "both")
    assert stops.ids == (0, 2)
    assert stops.note == ""


def test_no_stop_token_at_all_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="--stop_tokens both: no end-of-sequence token"):
        stop_tokens(tokenizer, GenerationConfig(), tokenizer, GenerationConfig(), "both")


def test_padding_is_eos_when_the_tokenizer_has_none():
    bare, padded = make_tokenizer(chat=True), make_tokenizer(chat=True, pad=True)
    stops = stop_tokens(bare, GenerationConfig(), bare, GenerationConfig(), "both")
    assert pad_token(bare, stops) == bare.eos_token_id
    assert pad_token(padded, stops) == padded.convert_tokens_to_ids(EOS) != padded.eos_token_id
