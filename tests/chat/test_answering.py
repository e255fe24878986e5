"""Answers are drawn as training draws, and judged as the definition says."""

from contextlib import nullcontext

import pytest
import torch

from local_distill.batch import Prompt
from local_distill.chat.answering import TextReader, TextStream, Voice, answer
from local_distill.chat.conversation import finished_answer
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.rollouts.hf import HFRollouts
from tests.tiny_models import gpt2_config, llama_config, make_model, make_tokenizer

PROMPT = (5, 17, 80, 9, 33)
CHOOSE = NucleusSampling(0.8, 0.9)
SAMPLING = SamplingParams(CHOOSE, 1, 24, frozenset({0}), seed=3)


def voice(config=None, seed=1, **more):
    return Voice("student", make_model(config or llama_config(), seed), 300, **more)


def dense(model, ids):
    """(T, V) log-probs of every token after the first, by one pass in float64 and no cache."""
    with torch.no_grad():
        return model.double()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)


@pytest.mark.parametrize("config", [llama_config(), gpt2_config()])
@pytest.mark.parametrize("number", [0, 5])
def test_an_answer_is_what_the_training_sampler_draws(config, number):
    student = voice(config)
    engine = HFRollouts(
        student.model, params=SamplingParams(CHOOSE, 1, 24, frozenset([0]), 3), pad_id=0, vocab_size=300,
        batch_size=1, autocast=nullcontext, say=print,
    )  # fmt: skip
    (rollout,) = engine.sample([(0, Prompt(PROMPT, "", ""))], step=number)
    assert [token.id for token in answer(student, PROMPT, SAMPLING, number)] == rollout.completion.tolist()


def test_it_ends_on_a_stop_token_or_at_the_limit():
    student = voice()
    ids = [token.id for token in answer(student, PROMPT, SAMPLING, 0)]
    assert len(ids) == 24
    stopped = SamplingParams(CHOOSE, 1, 24, frozenset({ids[6]}), seed=3)
    assert [token.id for token in answer(student, PROMPT, stopped, 0)] == ids[: ids.index(ids[6]) + 1]


def test_the_numbers_are_those_of_the_definition():
    student, teacher = voice(seed=1), voice(llama_config(layers=3), seed=2)
    tokens = list(answer(student, PROMPT, SAMPLING, 0, judge=teacher))
    ids = [token.id for token in tokens]
    first = len(PROMPT) - 1
    p, q = (dense(each.model, [*PROMPT, *ids])[first:] for each in (student, teacher))
    places = torch.arange(len(ids))
    expected = {
        "student": p[places, ids],
        "teacher": q[places, ids],
        "reverse_kl": (p.exp() * (p - q)).sum(-1),
    }
    for name, values in expected.items():
        found = torch.cat([getattr(token.compared, name) for token in tokens])
        torch.testing.assert_close(found, values, atol=1e-5, rtol=0.0)
    likeliest = torch.cat([token.compared.likeliest for token in tokens])
    assert torch.equal(likeliest, q.topk(5).indices)
    tokenizer = make_tokenizer()
    summed = finished_answer(tokenizer, tokens, "length", "text")
    assert summed.reverse_kl == pytest.approx(float(expected["reverse_kl"].mean()), abs=1e-5)
    assert "".join(piece.text for piece in summed.pieces) == tokenizer.decode(ids)


def test_the_judge_does_not_change_what_is_drawn():
    student, teacher = voice(seed=1), voice(seed=2)
    alone = [token.id for token in answer(student, PROMPT, SAMPLING, 0)]
    assert [token.id for token in answer(student, PROMPT, SAMPLING, 0, judge=teacher)] == alone


def test_a_student_can_be_judged_by_what_it_was():
    model = make_model(llama_config(), 1)
    adapted = add_lora(make_model(llama_config(), 1), LoraSettings(4, 8, 0.0, "all-linear"), 0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    student = Voice("student", adapted, 300)
    base = student.without_adapter("base")
    assert torch.equal(TextReader(base).read(PROMPT), TextReader(Voice("", model, 300)).read(PROMPT))
    tokens = list(answer(student, PROMPT, SAMPLING, 0, judge=base))
    assert min(token.reverse_kl for token in tokens) > 1e-4
    adapted_alone = [token.id for token in answer(student, PROMPT, SAMPLING, 0)]
    assert [token.id for token in tokens] == adapted_alone, "the adapter is on again"


def test_rows_that_are_padding_of_the_vocabulary_are_never_drawn():
    student = Voice("student", make_model(llama_config(vocab_size=320), 1), 300)
    assert TextReader(student).read(PROMPT).shape == (1, 300)


@pytest.mark.parametrize("text", ["plain words", "naïve café 在本地 🙂🚀 e\u0301", "a\n\n\tb  c", "🙂"])
def test_characters_over_several_tokens_come_whole(text):
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tokenizer)
    parts = [stream.add(each) for each in ids]
    assert "".join(parts) + stream.end() == text
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_half_a_character_at_the_end_is_shown_as_decoding_shows_it():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode("ok 🙂", add_special_tokens=False)[:-1]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.add, ids)) + stream.end() == tokenizer.decode(ids)
    assert stream.end() == ""


def test_special_tokens_are_no_text():
    tokenizer = make_tokenizer(chat=True)
    stream = TextStream(tokenizer)
    assert stream.add(tokenizer.eos_token_id) + stream.end() == ""
