"""A teacher behind a server: the numbers of one in this process, whichever way it is asked and whatever fails."""

import time

import pytest
import torch

from local_distill.batching import collate
from local_distill.errors import UserError
from local_distill.scorer import TokenScorer
from local_distill.serving.client import ServerError
from local_distill.teachers import server as module
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher
from local_distill.teachers.server import open_server_teacher
from local_distill.types import Prompt, Rollout
from tests.models import llama_config, make_model, make_tokenizer
from tests.serving.scoring_server import ScoringServer

V, CPU, EOS = 300, torch.device("cpu"), 0
ROLLOUTS = [
    Rollout(Prompt(prompt, "", ""), i, torch.tensor(completion), torch.zeros(len(completion)), "stop")
    for i, (prompt, completion) in enumerate(
        [
            ((5, 6, 7), [8, 9, 10, 0]),
            ((11,), [12, 0]),
            ((0, 3), [0]),
            ((5, 6, 7), [8, 9, 10, 0]),
            ((4, 9), list(range(20, 29))),
        ]
    )
]


@pytest.fixture(scope="module")
def model():
    return make_model(llama_config())


@pytest.fixture(params=["vllm", "sglang"])
def server(request, model):
    made = ScoringServer(model, make_tokenizer(), request.param)
    yield made
    made.close()


@pytest.fixture
def open_teacher():
    opened = []

    def at(*servers, top_k=0, **settings):
        settings = {
            "model": None, "student_tokenizer": make_tokenizer(), "vocab_size": V, "longest": 64, "device": CPU,
            "timeout": 5.0, "patience": 5.0, "concurrency": 4, "say": lambda _: None, **settings,
        }  # fmt: skip
        opened.append(open_server_teacher([each.url for each in servers], top_k=top_k, **settings))
        return opened[-1]

    yield at
    for teacher in opened:
        teacher.close()


def test_log_probs_are_those_of_a_teacher_in_this_process(server, model, open_teacher):
    batch = collate(ROLLOUTS, EOS)  # padded with a token that also ends completions, and two rollouts alike
    found = open_teacher(server).score(batch)
    expected = LocalTeacher(TokenScorer(model, V), CPU).score(batch).sampled_logprobs
    torch.testing.assert_close(found.sampled_logprobs, expected, rtol=0, atol=1e-5)
    assert found.top is None
    assert (found.sampled_logprobs[1:] - expected[:-1]).abs().mean() > 0.5, "a shift by one would show"


def test_likeliest_tokens_and_their_tail_too(server, model, open_teacher):
    batch = collate(ROLLOUTS, EOS)
    found = open_teacher(server, top_k=7).score(batch)
    expected = TopTokensTeacher(TokenScorer(model, V), CPU, 7).score(batch)
    torch.testing.assert_close(found.sampled_logprobs, expected.sampled_logprobs, rtol=0, atol=1e-5)
    assert torch.equal(found.top.ids, expected.top.ids)
    torch.testing.assert_close(found.top.logprobs, expected.top.logprobs, rtol=0, atol=1e-5)


def test_a_tail_that_the_server_rounded_away_is_small_and_finite(model, open_teacher):
    server = ScoringServer(model, make_tokenizer())
    teacher = open_teacher(server, top_k=3)
    server.change = lambda answer: [
        value.update(logprob=-1.0986)
        for entry in answer["choices"][0]["prompt_logprobs"][1:]
        for value in entry.values()
    ]
    top = teacher.score(collate(ROLLOUTS[1:2], EOS)).top
    assert top.logprobs.isfinite().all()
    assert (top.logprobs[:, -1] < -8).all()
    server.close()


def test_rows_without_completions_ask_for_nothing(server, open_teacher):
    teacher = open_teacher(server, top_k=3)
    before = server.scored()
    empty = teacher.score(collate([], EOS))
    assert empty.sampled_logprobs.shape == (0,)
    assert (empty.top.ids.shape, empty.top.logprobs.shape) == ((0, 3), (0, 4))
    assert server.scored() == before


def test_scoring_begins_when_a_rollout_is_finished_and_is_done_once(server, open_teacher):
    teacher = open_teacher(server)
    before = server.scored()
    for rollout in ROLLOUTS:
        teacher.prepare(rollout)
    end = time.monotonic() + 5
    while server.scored() < before + 4 and time.monotonic() < end:
        time.sleep(0.01)
    assert server.scored() == before + 4, "two of them are alike"
    teacher.score(collate(ROLLOUTS, EOS))
    assert server.scored() == before + 4
    teacher.score(collate(ROLLOUTS[:1], EOS))
    assert server.scored() == before + 5, "and forgotten then"


def test_what_was_prepared_is_not_taken_for_another_row(server, model, open_teacher):
    """The same ids, cut differently into prompt and completion."""
    teacher = open_teacher(server)
    one = Rollout(Prompt((5, 6, 7), "", ""), 0, torch.tensor([8, 9]), torch.zeros(2), "stop")
    other = Rollout(Prompt((5, 6), "", ""), 0, torch.tensor([7, 8, 9]), torch.zeros(3), "stop")
    teacher.prepare(one)
    batch = collate([other, one], EOS)
    expected = LocalTeacher(TokenScorer(model, V), CPU).score(batch).sampled_logprobs
    torch.testing.assert_close(teacher.score(batch).sampled_logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("failure", ["500", "429", "closed", "stalled"])
def test_failures_that_pass_change_nothing(server, model, open_teacher, failure):
    teacher = open_teacher(server, timeout=0.5)
    left = [3]

    def before(path, body):
        del path, body
        with server.lock:
            left[0] -= 1
            fails = left[0] >= 0
        if not fails:
            return None
        if failure == "closed":
            raise ConnectionAbortedError
        if failure == "stalled":
            time.sleep(1)
            return None
        return int(failure), {"message": "not now"}, {"Retry-After": "0.1"}

    server.before = before
    batch = collate(ROLLOUTS, EOS)
    expected = LocalTeacher(TokenScorer(model, V), CPU).score(batch).sampled_logprobs
    torch.testing.assert_close(teacher.score(batch).sampled_logprobs, expected, rtol=0, atol=1e-5)


def test_a_server_that_stays_away_ends_it_in_one_line(server, open_teacher):
    teacher = open_teacher(server, patience=0.3)
    server.before = lambda *_: (503, {}, {})
    with pytest.raises(ServerError, match=r"^--teacher_url http://127.*tried for 0\.3 s") as found:
        teacher.score(collate(ROLLOUTS, EOS))
    assert "\n" not in str(found.value)


def entries_of(answer):
    """Where an answer of either kind has its list of log-probs."""
    if "choices" in answer:
        return answer["choices"][0], "prompt_logprobs"
    return answer["meta_info"], "input_token_logprobs"


def one_short(answer):
    container, name = entries_of(answer)
    container[name] = container[name][2:]


def shifted(answer):
    container, name = entries_of(answer)
    container[name] = [container[name][0], *container[name][:-1]]


def not_a_number(answer):
    for entry in answer.get("choices", [{}])[0].get("prompt_logprobs", [])[1:]:
        for value in entry.values():
            value["logprob"] = -9999.0
    for row in answer.get("meta_info", {}).get("input_token_logprobs", [])[1:]:
        row[0] = float("nan")


@pytest.mark.parametrize("change", [one_short, shifted, not_a_number, lambda answer: answer.clear()])
def test_an_answer_that_does_not_fit_is_never_trained_on(server, open_teacher, change):
    teacher = open_teacher(server)
    server.change = change
    with pytest.raises(ServerError, match=r"^--teacher_url: a server's answer"):
        teacher.score(collate(ROLLOUTS[4:], EOS))


def test_several_servers_share_the_work(model, open_teacher):
    servers = [ScoringServer(model, make_tokenizer()) for _ in range(2)]
    teacher = open_teacher(*servers, concurrency=2)
    for server in servers:
        server.delay, server.most_busy = 0.02, 0
    rollouts = [Rollout(Prompt((i,), "", ""), i, torch.tensor([5, 6]), torch.zeros(2), "stop") for i in range(1, 21)]
    before = [server.scored() for server in servers]
    teacher.score(collate(rollouts, EOS))
    assert [server.scored() - b for server, b in zip(servers, before, strict=True)] == pytest.approx([10, 10], abs=2)
    assert sum(server.most_busy for server in servers) <= 3
    for server in servers:
        server.close()


def test_two_models_behind_one_list_are_refused(model, open_teacher):
    servers = [ScoringServer(each, make_tokenizer()) for each in (model, make_model(llama_config(), seed=9))]
    with pytest.raises(UserError, match=r"^--teacher_url: .* do not serve the same model"):
        open_teacher(*servers)
    for server in servers:
        server.close()


def test_what_is_refused_at_the_start(server, open_teacher):
    with pytest.raises(UserError, match=r"^--teacher_url http://127.*splits text into other tokens"):
        open_teacher(server, student_tokenizer=make_tokenizer(vocab_size=280))
    with pytest.raises(UserError, match=r"takes 128 tokens.*--max-model-len 129"):
        open_teacher(server, longest=128)
    with pytest.raises(UserError, match=r"^--teacher_model other: .* serves teacher; give one"):
        open_teacher(server, model="other")
    if server.kind == "vllm":
        with pytest.raises(UserError, match=r"^--teacher_url .*greater than max allowed.*--max-logprobs 21"):
            open_teacher(server, top_k=21)


def test_a_token_outside_the_shared_vocabulary_is_refused(server, open_teacher):
    with pytest.raises(ServerError, match=r"among the 7 likeliest, and student and teacher share 20"):
        open_teacher(server, top_k=7, vocab_size=20).score(collate(ROLLOUTS, EOS))


def test_the_key_is_read_from_the_environment(server, open_teacher, monkeypatch):
    monkeypatch.setenv(module.KEY_VARIABLE, "sk-1")
    open_teacher(server)
    assert all(headers["Authorization"] == "Bearer sk-1" for _, _, headers in server.asked)
