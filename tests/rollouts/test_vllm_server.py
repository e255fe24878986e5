"""What the engine asks of a vLLM server and what it makes of the answers; the real server is in tests/servers."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest

from local_distill.batch import Prompt
from local_distill.errors import RunError, UserError
from local_distill.head.sampling import NucleusSampling
from local_distill.rollouts.vllm_server import COMPLETIONS, FLAG, KEY_VARIABLE, VLLMServerRollouts, check_engine
from local_distill.serving.client import HttpClient
from tests.fake_vllm import FakeVLLM
from tests.sampling import flat
from tests.tiny_models import make_tokenizer

V = 300
STOPS = list(range(0, V, 8))
PROMPTS = [(4, Prompt((5, 6, 7), "", "")), (1, Prompt((9,), "", ""))]
TEMPERATURE_ONE = NucleusSampling(1.0, 1.0)


class Held:
    """A publisher of weights that never change; ``given`` are the servers that were given them again."""

    served_model, salt = "base", "version 3"

    def __init__(self):
        self.given, self.calls = [], []

    def drawing(self):
        self.calls.append("draw")
        return nullcontext()

    def publish(self):
        self.calls.append("publish")
        return True

    def again(self, url):
        self.given.append(url)

    def look(self):
        self.calls.append("look")


@pytest.fixture
def server():
    fake = FakeVLLM(V)
    yield fake
    fake.close()


@pytest.fixture
def client(server):
    client = make_client(server.url)
    yield client
    client.close()


def make_client(*urls, patience=0.2):
    return HttpClient(urls, flag=FLAG, key_variable=KEY_VARIABLE, timeout=5, patience=patience, concurrency=8)


def engine(client, publisher=None, **overrides):
    settings = {
        "choose": TEMPERATURE_ONE, "group_size": 3, "max_new_tokens": 12, "stop_ids": STOPS, "vocab_size": V, "rows": V,
        "seed": 7,
    }  # fmt: skip
    return VLLMServerRollouts(client, publisher or Held(), **flat({**settings, **overrides}))


def completions(rollouts):
    return [r.completion.tolist() for r in rollouts]


def test_order_positions_groups_and_alignment(client):
    told = []
    rollouts = engine(client, group_size=8).sample(PROMPTS, 0, finished=told.append)
    assert [(r.position, r.prompt) for r in rollouts] == [PROMPTS[0]] * 8 + [PROMPTS[1]] * 8
    assert len({tuple(c) for c in completions(rollouts)}) == 16, "the members of a group differ"
    assert {id(r) for r in told} == {id(r) for r in rollouts}
    for r in rollouts:
        assert r.sampler_logprobs.tolist() == pytest.approx([-1 - token / 1024 for token in r.completion.tolist()])
        assert (r.completion[-1].item() in STOPS) == (r.finish == "stop")
    assert {r.finish for r in rollouts} == {"stop", "length"}


def test_draws_depend_on_seed_step_position_and_member_alone(client):
    base = completions(engine(client).sample(PROMPTS, 3))
    assert completions(engine(client).sample(PROMPTS, 3)) == base
    assert completions(engine(client).sample(PROMPTS[1:], 3)) == base[3:]
    assert completions(engine(client).sample(PROMPTS, 4)) != base
    assert completions(engine(client, seed=8).sample(PROMPTS, 3)) != base


def test_what_a_server_is_asked_for(client, server):
    engine(client, choose=NucleusSampling(0.7, 0.9)).sample(PROMPTS, 0)
    bodies = server.bodies(COMPLETIONS)
    assert sorted(body["prompt"] for body in bodies) == [[5, 6, 7]] * 3 + [[9]] * 3
    for body in bodies:
        assert body["model"] == "base"
        assert body["cache_salt"] == "version 3"
        neutral = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
        assert body.items() >= (neutral | {"n": 1, "temperature": 0.7, "top_p": 0.9, "max_tokens": 12}).items()
        assert body["stop_token_ids"] == STOPS
        assert body["ignore_eos"] is True
        assert 0 <= body["seed"] < 2**53
    assert len({body["seed"] for body in bodies}) == 6


def test_all_requests_are_under_way_at_once(client, server):
    together = threading.Barrier(6)  # breaks, and so fails the request, unless six are in flight

    def wait(path, _body):
        if path == COMPLETIONS:
            together.wait(timeout=3)

    server.before = wait
    assert len(engine(client).sample(PROMPTS, 0)) == 6


def test_weights_are_published_before_a_draw_and_not_by_one(client):
    publisher = Held()
    sampler = engine(client, publisher)
    sampler.sample(PROMPTS, 0)
    assert publisher.calls == ["publish", "draw", *["look"] * 6]
    publisher.calls.clear()
    sampler.draw(PROMPTS, 1)
    assert publisher.calls == ["draw", *["look"] * 6], "servers are looked at before each request"


def lose_a_logprob(choice):
    choice["logprobs"]["token_logprobs"].pop()


def lose_a_token(choice):
    choice["token_ids"].pop()


def shift(choice):
    choice["logprobs"]["tokens"].insert(0, choice["logprobs"]["tokens"].pop())


def say_nothing(choice):
    choice["token_ids"], choice["logprobs"] = [], {"tokens": [], "token_logprobs": []}


def no_logprob(choice):
    choice["logprobs"]["token_logprobs"][0] = None


def replace(index, token=None, logprob=None):
    def change(choice):
        if token is not None:
            choice["token_ids"][index] = token
            choice["logprobs"]["tokens"][index] = f"token_id:{token}"
        if logprob is not None:
            choice["logprobs"]["token_logprobs"][index] = logprob

    return change


def cut_short(choice):
    for each in (choice["token_ids"], *choice["logprobs"].values()):
        del each[5:]
    choice["finish_reason"] = "abort"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_a_logprob, "log-prob of each"),
        (lose_a_token, "log-prob of each"),
        (shift, "log-prob of each"),
        (lambda choice: choice.update(logprobs=None), "log-prob of each"),
        (no_logprob, "log-prob of each"),
        (say_nothing, "0 tokens, 1 to 12"),
        (replace(3, token=V), "token 300, student and teacher share 300"),
        (replace(3, logprob=-9999.0), "not finite"),
        (cut_short, "cut short after 5 tokens .*abort"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(client, server, change, message):
    server.change = change
    with pytest.raises(RunError, match=message):
        engine(client, stop_ids=[]).sample(PROMPTS, 0)


def test_a_completion_that_goes_on_after_a_stop_token_is_refused(client, server):
    server.change = replace(2, token=8)
    with pytest.raises(RunError, match="after a stop token"):
        engine(client, stop_ids=[8], seed=9).sample(PROMPTS, 0)


def test_one_lost_rollout_loses_the_batch(client, server):
    def fail_one(path, body):
        if path == COMPLETIONS and body["prompt"] == [9]:
            return 500, {"error": {"message": "out of memory"}}
        return None

    server.before = fail_one
    with pytest.raises(RunError, match="out of memory"):
        engine(client).sample(PROMPTS, 0)


def test_a_server_that_forgot_the_adapter_is_given_it_again(client, server):
    publisher = Held()
    publisher.served_model = "student-3"

    def give(url):
        publisher.given.append(url)
        server.adapters["student-3"] = "somewhere"

    publisher.again = give
    assert len(engine(client, publisher).draw(PROMPTS, 0)) == 6
    assert set(publisher.given) == {server.url}


def test_a_server_that_will_not_take_the_weights_ends_the_run(client):
    publisher = Held()
    publisher.served_model = "student-3"
    with pytest.raises(RunError, match=r"--rollouts_url .*`student-3` does not exist.*; asked 3 times"):
        engine(client, publisher).draw(PROMPTS, 0)


def test_a_lost_connection_has_the_weights_sent_again_before_the_next_try(client, server):
    publisher, failures = Held(), iter([503])

    def once(path, _body):
        status = next(failures, None) if path == COMPLETIONS else None
        return None if status is None else (status, {"error": {"message": "starting"}})

    server.before = once
    assert len(engine(client, publisher).draw(PROMPTS, 0)) == 6
    assert publisher.given == [server.url]


@pytest.fixture
def student_server():
    tokenizer = make_tokenizer()
    fake = FakeVLLM(V, lambda text: tokenizer.encode(text, add_special_tokens=False))
    client = make_client(fake.url)
    yield fake, client, tokenizer
    client.close()
    fake.close()


def test_rows_that_are_no_tokens_of_both_models_are_not_drawn(server, client):
    """As the commonest pair has them: 152,064 rows beside 151,936."""
    prompts = [(0, Prompt((5, 6), "", ""))]
    narrow = engine(client, vocab_size=V - 128, rows=V, group_size=64, stop_ids=())
    drawn = {token for ids in completions(narrow.sample(prompts, 0)) for token in ids}
    assert V - 160 < max(drawn) < V - 128
    (body, *_) = server.bodies(COMPLETIONS)
    assert body["logit_bias"] == {str(row): -100.0 for row in range(V - 128, V)}, "vLLM on a GPU takes 1,024 at most"
    assert "allowed_token_ids" not in body
    engine(client).sample(prompts, 0)
    assert "logit_bias" not in server.bodies(COMPLETIONS)[-1]


def test_a_server_that_fits_gives_its_models_name(student_server):
    _, client, tokenizer = student_server
    assert check_engine(client, tokenizer, longest=64, choose=NucleusSampling(0.7, 0.9)) == "base"


def test_a_server_that_does_not_fit_is_refused(student_server):
    fake, client, tokenizer = student_server
    with pytest.raises(UserError, match=r"takes 64 tokens, .* 65 together; .*--max-model-len 65"):
        check_engine(client, tokenizer, longest=65, choose=TEMPERATURE_ONE)
    with pytest.raises(UserError, match="other tokens than the student"):
        check_engine(client, make_tokenizer(vocab_size=280), longest=9, choose=TEMPERATURE_ONE)
    fake.processed = False
    check_engine(client, tokenizer, longest=9, choose=TEMPERATURE_ONE)
    for choose, leaves_out in (
        (NucleusSampling(0.7, 1.0), False),
        (NucleusSampling(1.0, 0.9), False),
        (TEMPERATURE_ONE, True),
    ):
        with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
            check_engine(client, tokenizer, longest=9, choose=choose, leaves_out=leaves_out)


def test_servers_that_serve_different_models_are_refused(student_server):
    fake, _, tokenizer = student_server
    other = FakeVLLM(V, fake.tokenize)
    other.before = lambda path, _: (200, {"data": [{"id": "another"}]}) if path == "/v1/models" else None
    client = make_client(fake.url, other.url)
    with pytest.raises(UserError, match=r"serves another, .* serves base"):
        check_engine(client, tokenizer, longest=9, choose=TEMPERATURE_ONE)
    client.close()
    other.close()
