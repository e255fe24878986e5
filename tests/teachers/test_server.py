"""A teacher behind a server gives what the same weights give in this process, and nothing else.

The servers here are small, but real: HTTP on this machine, a model behind it. vLLM itself is in tests/servers.
"""

import json
import math
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from local_distill.batch import TopLogprobs
from local_distill.errors import UserError
from local_distill.models.scorer import TokenScorer
from local_distill.serving.client import HttpClient, ServerError
from local_distill.serving.scoring import VLLM, SGLang, log_of_rest
from local_distill.teachers.local import TopTokensTeacher
from local_distill.teachers.server import KEY_VARIABLE, ServerTeacher, open_server_teacher, questions_of
from local_distill.training.batching import collate
from tests.serving.protocol_server import ProtocolServer, close_connection, serving, stall, status
from tests.tiny_models import llama_config, make_model, make_tokenizer
from tests.training.test_batching import rollout

CPU, V, K, LAST = torch.device("cpu"), 300, 5, 299
EOS = 0  # also the padding
ROLLOUTS = [
    rollout([5, 6], [7, 8, EOS]), rollout([9], [10]), rollout([1, 2, 3, 4, EOS], [6, 7, LAST, LAST]), rollout([3], []),
    rollout([EOS, EOS], [EOS, EOS]), rollout([5, 6], [7, 8, EOS]), rollout([LAST], [EOS, LAST]), rollout([9, 10], [10]),
]  # fmt: skip
KINDS = pytest.mark.parametrize("kind", ["vllm", "sglang"])


@pytest.fixture(scope="module")
def model():
    return make_model(llama_config(), seed=2)


@pytest.fixture(scope="module")
def other_model():
    return make_model(llama_config(), seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def server(model, tokenizer):
    with serving(model, tokenizer) as made:
        yield made


@contextmanager
def teacher_at(*urls, kind="vllm", top_k=K, **settings):
    wire = VLLM("tiny") if kind == "vllm" else SGLang(LAST)
    asked = {"timeout": 5, "patience": 5, "concurrency": 4, **settings}
    client = HttpClient(urls, flag="--teacher_url", key_variable=KEY_VARIABLE, **asked)
    teacher = ServerTeacher(client, wire, device=CPU, vocab_size=V, top_k=top_k)
    try:
        yield teacher
    finally:
        teacher.close()


def opened(*urls, tokenizer, **settings):
    asked = {
        "model": None, "student_tokenizer": tokenizer, "vocab_size": V, "longest": 100, "top_k": K, "device": CPU,
        "timeout": 5, "patience": 2, "concurrency": 4, "say": lambda _: None, **settings,
    }  # fmt: skip
    return open_server_teacher(urls, **asked)


def in_this_process(model, rollouts=ROLLOUTS):
    return TopTokensTeacher(TokenScorer(model, V), CPU, K).score(collate(rollouts, EOS))


def assert_same(scored, expected):
    torch.testing.assert_close(scored.signal.logprobs, expected.signal.logprobs, rtol=0, atol=1e-5)
    if isinstance(scored.signal, TopLogprobs):
        assert torch.equal(scored.signal.top.ids, expected.signal.top.ids)
        torch.testing.assert_close(scored.signal.top.logprobs, expected.signal.top.logprobs, rtol=0, atol=1e-5)


@KINDS
@pytest.mark.parametrize("top_k", [0, K])
def test_scores_are_those_of_the_same_weights_in_this_process(model, tokenizer, kind, top_k):
    expected = in_this_process(model)
    with serving(model, tokenizer, kind=kind) as server, teacher_at(server.url, kind=kind, top_k=top_k) as teacher:
        batch = collate(ROLLOUTS, EOS)
        scored = teacher.score(batch)
        assert_same(scored, expected)
        assert scored.signal.logprobs.dtype == torch.float32
        assert isinstance(scored.signal, TopLogprobs) == (top_k > 0)
        assert len(server.scored) == 6, "equal rows share a request, an empty completion needs none"
        # Any order, any cut.
        assert_same(teacher.score(collate(ROLLOUTS[::-1], EOS)), in_this_process(model, ROLLOUTS[::-1]))
        assert_same(scored.rows(1, 3), expected.rows(1, 3))
        assert_same(teacher.score(batch.rows(1, 3)), expected.rows(1, 3))


@KINDS
def test_one_token_further_is_clearly_wrong(model, tokenizer, kind):
    """What the comparison above would say of a shift by one."""
    expected = in_this_process(model).signal.logprobs
    with serving(model, tokenizer, kind=kind) as server, teacher_at(server.url, kind=kind) as teacher:
        found = teacher.score(collate(ROLLOUTS, EOS)).signal.logprobs
    assert (found.roll(1) - expected).abs().mean() > 0.5


@pytest.mark.parametrize("rollouts", [[], [rollout([3], [])]], ids=["no rollout", "empty completion"])
def test_nothing_to_score_needs_no_server(rollouts):
    with teacher_at("http://127.0.0.1:9") as teacher:
        for each in rollouts:
            teacher.prepare(each)
        scored = teacher.score(collate(rollouts, EOS))
    assert scored.signal.logprobs.shape == (0,)
    assert scored.signal.top.ids.shape == (0, K)
    assert scored.signal.top.logprobs.shape == (0, K + 1)
    assert scored.signal.top.ids.dtype == torch.long


def test_questions_are_the_rollouts():
    asked = questions_of(collate(ROLLOUTS, EOS), 0)
    told = [(*r.prompt.ids, *r.completion.tolist()) for r in ROLLOUTS if len(r.completion)]
    assert [each.ids for each in asked] == told
    assert [list(each.targets) for each in asked] == [r.completion.tolist() for r in ROLLOUTS if len(r.completion)]


def test_requests_begin_when_a_rollout_is_finished_and_are_not_made_again(server, model):
    with teacher_at(server.url) as teacher:
        for each in (*ROLLOUTS, *ROLLOUTS[:2]):  # sampling may have to be repeated
            teacher.prepare(each)
        end = time.monotonic() + 5
        while len(server.scored) < 6 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(server.scored) == 6, "before anybody asked for a score"
        assert_same(teacher.score(collate(ROLLOUTS, EOS)), in_this_process(model))
        assert len(server.scored) == 6
        teacher.score(collate(ROLLOUTS, EOS))
        assert len(server.scored) == 12, "what was taken is not kept"


def test_the_same_ids_with_another_end_of_the_prompt_are_another_rollout(server, model):
    """[1 2 | 3 4] and [1 2 3 | 4] have the same ids."""
    alike = [rollout([1, 2], [3, 4]), rollout([1, 2, 3], [4]), rollout([1], [2, 3, 4])]
    with teacher_at(server.url) as teacher:
        for each in alike:
            teacher.prepare(each)
        for each in alike:
            assert_same(teacher.score(collate([each], EOS)), in_this_process(model, [each]))
        assert len(server.scored) == 3


def test_what_nobody_comes_for_is_dropped(server, monkeypatch):
    monkeypatch.setattr("local_distill.teachers.server.FORGOTTEN_AFTER", 2)
    with teacher_at(server.url) as teacher:
        teacher.prepare(ROLLOUTS[0])
        for _ in range(2):
            teacher.score(collate([ROLLOUTS[1]], EOS))
        assert len(teacher._prepared) == 1
        teacher.score(collate([ROLLOUTS[1]], EOS))
        assert not teacher._prepared


def test_several_servers_share_the_work_within_bounds(model, tokenizer):
    many = [rollout([i, i + 1], [i + 2, i + 3]) for i in range(1, 40)]
    with serving(model, tokenizer, slow=0.01) as one, serving(model, tokenizer, slow=0.01) as two:
        with teacher_at(one.url, two.url, concurrency=6) as teacher:
            assert_same(teacher.score(collate(many, EOS)), in_this_process(model, many))
        assert len(one.scored) > 10
        assert len(two.scored) > 10
        assert max(one.most_in_flight, two.most_in_flight) <= 3
        assert one.most_in_flight + two.most_in_flight > 2, "and they run at the same time"


def test_failures_on_the_way_change_nothing(server, model):
    server.failures += [status(429, Retry_After="0.1"), status(500), close_connection, stall(0.8)] * 2
    with teacher_at(server.url, timeout=0.6) as teacher:
        for each in ROLLOUTS:
            teacher.prepare(each)
        assert_same(teacher.score(collate(ROLLOUTS, EOS)), in_this_process(model))
    assert not server.failures


def test_a_server_that_stays_away_ends_the_run(server):
    with teacher_at(server.url, patience=0.3) as teacher:
        server.stop()
        with pytest.raises(ServerError, match=rf"^--teacher_url {server.url}: .*does not answer"):
            teacher.score(collate(ROLLOUTS, EOS))


def entries(answer):
    return answer["choices"][0]["prompt_logprobs"]


def shifted(answer):
    entries(answer).insert(1, entries(answer)[1])
    entries(answer).pop()


def set_first(value):
    def mangle(answer):
        for each in entries(answer)[-1].values():
            each["logprob"] = value

    return mangle


MANGLED = {
    "entry missing": (lambda answer: entries(answer).pop(), "entries"),
    "entry too many": (lambda answer: entries(answer).append({}), "entries"),
    "shifted": (shifted, "KeyError"),
    "no null first": (lambda answer: entries(answer).__setitem__(0, {}), "as the first entry"),
    "log-prob null": (set_first(None), "TypeError"),
    "minus infinity": (set_first(-9999.0), "-9999, needs to be finite"),
    "NaN": (set_first(math.nan), "nan, needs to be finite"),
    "positive": (set_first(0.3), "0.3, needs to be finite and at most 0"),
    "probabilities above 1": (set_first(-0.1), "sum to more than 1"),
    "too few likeliest": (lambda answer: [entries(answer)[-1].popitem() for _ in range(3)], "likeliest"),
    "foreign token": (lambda a: entries(a)[-1].update({"300": {"logprob": -1e-3}}), "token id 300"),
    "no choice": (lambda answer: answer.update(choices=[]), "ValueError"),
    "an error object": (lambda answer: answer.pop("choices"), "KeyError"),
}


@pytest.mark.parametrize("name", MANGLED)
def test_any_other_answer_is_an_error_not_a_guess(server, name):
    change, said = MANGLED[name]

    def mangle(answer):
        change(answer)
        return answer

    server.mangle = mangle
    refused = pytest.raises(ServerError, match=rf"^--teacher_url {server.url}: answered with .*{said}")
    with teacher_at(server.url, patience=0.1) as teacher, refused:
        teacher.score(collate([rollout([5, 6], [7, 8, 9])], EOS))


SGLANG_MANGLED = {
    "entry missing": (lambda meta: meta["input_token_logprobs"].pop(), "entries"),
    "other id": (lambda meta: meta["input_token_logprobs"][1].__setitem__(1, 17), "17 instead of 7"),
    "top shifted": (lambda meta: meta["input_top_logprobs"].insert(1, meta["input_top_logprobs"].pop()), "mixes"),
    "top missing": (lambda meta: meta.pop("input_top_logprobs"), "KeyError"),
    "no first null": (lambda meta: meta["input_token_logprobs"][0].__setitem__(0, -1.0), "as the first entry"),
}


@pytest.mark.parametrize("name", SGLANG_MANGLED)
def test_the_same_of_sglang(model, tokenizer, name):
    change, said = SGLANG_MANGLED[name]

    def mangle(answer):
        change(answer["meta_info"])
        return answer

    with (
        serving(model, tokenizer, kind="sglang") as server,
        teacher_at(server.url, kind="sglang", top_k=290, patience=0.1) as teacher,
    ):
        server.mangle = mangle
        with pytest.raises(ServerError, match=rf"^--teacher_url {server.url}: answered with .*{said}"):
            teacher.score(collate([rollout([5, 6], [7, 8, 9])], EOS))


def test_the_mass_that_is_left():
    probs = torch.tensor([[0.25, 0.5], [1e-9, 1e-9], [0.5, 0.5 - 1e-5], [0.5, 0.5], [0.6, 0.4 + 1e-6]])
    rest = log_of_rest(probs.double().log())
    least = math.log(1e-7)
    assert rest.tolist() == pytest.approx([math.log(0.25), -2e-9, math.log(1e-5), least, least], abs=1e-2)
    assert rest[:2].tolist() == pytest.approx([math.log(0.25), -2e-9], abs=1e-10)


@KINDS
def test_a_teacher_is_opened_by_its_addresses(model, tokenizer, kind):
    expected = in_this_process(model)
    with serving(model, tokenizer, kind=kind) as one, serving(model, tokenizer, kind=kind) as two:
        teacher = opened(one.url, two.url + "/v1", tokenizer=tokenizer)
        assert_same(teacher.score(collate(ROLLOUTS, EOS)), expected)
        teacher.close()


def test_the_model_is_chosen_by_name(model, tokenizer):
    with serving(model, tokenizer, names=("first", "second")) as server:
        for name, used in ((None, "first"), ("second", "second"), ("adapter", "adapter")):
            opened(server.url, tokenizer=tokenizer, model=name).close()
            assert server.scored[-1]["model"] == used
        with pytest.raises(UserError, match=r"^--teacher_model third: .* serves first, second, adapter; "):
            opened(server.url, tokenizer=tokenizer, model="third")


def test_the_key_comes_from_the_environment(model, tokenizer, monkeypatch):
    with serving(model, tokenizer, key="secret") as server:
        monkeypatch.setenv(KEY_VARIABLE, "secret")
        opened(server.url, tokenizer=tokenizer).close()
        monkeypatch.delenv(KEY_VARIABLE)
        with pytest.raises(UserError, match=rf"^--teacher_url .*401.*{KEY_VARIABLE}"):
            opened(server.url, tokenizer=tokenizer)


@KINDS
def test_a_server_that_takes_too_little_is_refused(model, tokenizer, kind):
    option = {"vllm": "--max-model-len 128", "sglang": "--context-length 128"}[kind]
    with serving(model, tokenizer, kind=kind, max_model_len=127) as server:
        with pytest.raises(UserError, match=rf"^--teacher_url .*takes 127 tokens, .*may have 127 .*{option}"):
            opened(server.url, tokenizer=tokenizer, longest=127)
        teacher = opened(server.url, tokenizer=tokenizer, longest=126)
        teacher.score(collate([rollout([1] * 60, [2] * 66)], EOS))
        teacher.close()


def test_more_likeliest_tokens_than_the_server_gives_are_refused(model, tokenizer):
    with serving(model, tokenizer, max_logprobs=20) as server:
        with pytest.raises(UserError, match=r"^--top_k 21: .*greater than max allowed.*--max-logprobs 21"):
            opened(server.url, tokenizer=tokenizer, top_k=21)
        opened(server.url, tokenizer=tokenizer, top_k=20).close()


def renumbered(tokenizer, a, b):
    """The same splits, with the ids of two tokens exchanged."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    names = {index: token for token, index in vocab.items()}
    vocab[names[a]], vocab[names[b]] = b, a
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|endoftext|>")


def test_other_tokens_are_refused(model, tokenizer):
    fewer = pytest.raises(UserError, match=r"^--teacher_url .*tiny does not have the student's tokens: .*family")
    with serving(model, make_tokenizer(vocab_size=280)) as server, fewer:
        opened(server.url, tokenizer=tokenizer)
    exchanged = pytest.raises(UserError, match=r"is id (298|299) to the student, id (298|299) there")
    with serving(model, renumbered(tokenizer, LAST, LAST - 1)) as server, exchanged:
        opened(server.url, tokenizer=tokenizer)


def test_servers_of_different_models_are_refused(model, other_model, tokenizer):
    weights = pytest.raises(UserError, match=r"^--teacher_url: .* serve different models: .* nats")
    with serving(model, tokenizer) as one, serving(other_model, tokenizer) as two, weights:
        opened(one.url, two.url, tokenizer=tokenizer)
    kinds = pytest.raises(UserError, match=r"^--teacher_url: .*start all servers alike")
    with serving(model, tokenizer) as one, serving(model, tokenizer, kind="sglang") as two, kinds:
        opened(one.url, two.url, tokenizer=tokenizer)


def test_other_servers_are_refused(model, tokenizer):
    unknown = pytest.raises(UserError, match=r"^--teacher_url .* is no server of vLLM or SGLang")
    with serving(model, tokenizer, kind="openai") as server, unknown:
        opened(server.url, tokenizer=tokenizer)

    class NoModels(ProtocolServer):
        def routes(self):
            return {}

    server = NoModels(model, tokenizer)
    with pytest.raises(UserError, match=r"^--teacher_url .* is no server of vLLM or SGLang"):
        opened(server.url, tokenizer=tokenizer)
    server.stop()


def test_a_server_that_answers_the_trial_wrongly_is_refused(server, tokenizer):
    server.mangle = lambda _: {"choices": [{"prompt_logprobs": None}]}
    with pytest.raises(UserError, match=r"^--teacher_url .*answered a trial with TypeError"):
        opened(server.url, tokenizer=tokenizer)


def test_a_server_that_is_still_starting_is_waited_for(model, tokenizer):
    said = []
    with serving(model, tokenizer) as server:
        port, url = server.server_port, server.url
    late = []
    timer = threading.Timer(0.8, lambda: late.append(ProtocolServer(model, tokenizer, port=port)))
    timer.start()
    opened(url, tokenizer=tokenizer, patience=20, say=said.append).close()
    timer.join()
    late[0].stop()
    assert "tried again for 20 s" in said[0]
    assert said[-1] == f"--teacher_url {url}: answers again"


def test_ages_do_not_matter(server, model):
    """A stale rollout has the same tokens."""
    with teacher_at(server.url) as teacher:
        teacher.prepare(replace(ROLLOUTS[0], age=1))
        assert_same(teacher.score(collate(ROLLOUTS[:1], EOS)), in_this_process(model, ROLLOUTS[:1]))
        assert len(server.scored) == 1
