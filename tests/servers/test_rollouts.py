"""Sampling by a real vLLM in bfloat16, which is sent the student's weights and may be killed."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from local_distill.batch import Prompt
from local_distill.errors import UserError
from local_distill.head.sampling import NucleusSampling
from local_distill.models.adapters import LoraSettings, add_lora
from local_distill.models.scorer import TokenScorer
from local_distill.rollouts.vllm_server import FLAG, KEY_VARIABLE, VLLMServerRollouts, check_engine
from local_distill.serving.client import HttpClient
from local_distill.serving.publishing import AdapterPublisher, WeightsPublisher, fresh_folder
from local_distill.training.batching import collate, split_by_tokens
from tests.sampling import flat
from tests.tiny_models import make_tokenizer

V = 49152
TEMPERATURE_ONE, NUCLEUS = NucleusSampling(1.0, 1.0), NucleusSampling(0.7, 0.9)
BOUND = 0.1
"""Nats, mean absolute difference of a bfloat16 engine's log-probs from ours in float32."""
CLEARLY = 0.3
"""Nats: what wrong weights or a shift by one differ by, at least."""
ADAPTER, WHOLE = 0.1, 0.15
"""Size of the made-up updates: large, so that old weights are clearly told from new ones."""
QUESTIONS = (
    "Explain how a bicycle stays upright.",
    "What is the difference between weather and climate?",
)
LONG = "Tell me a story with these in it: " + ", ".join(f"{i} foxes" for i in range(12, 36)) + "."
"""Longer than a block of the server's cache of keys and values, so that it is looked up there."""


@dataclass
class Student:
    """A model that trains, as far as publishers know."""

    model: torch.nn.Module
    version: int = 0

    def model_state(self):
        return self.model.state_dict()


class SameSalt:
    """A publisher that forgets to tell versions apart in the server's cache of keys and values."""

    salt = "always the same"

    def __init__(self, publisher):
        self._publisher = publisher

    def __getattr__(self, name):
        return getattr(self._publisher, name)


@pytest.fixture(scope="module")
def tokenizer(vllm_server):
    return AutoTokenizer.from_pretrained(vllm_server.model_folder)


@pytest.fixture
def prompts(tokenizer):
    return [(i, rendered(tokenizer, text)) for i, text in enumerate((*QUESTIONS, LONG))]


@pytest.fixture
def client(vllm_server):
    client = HttpClient(
        [vllm_server.url], flag=FLAG, key_variable=KEY_VARIABLE, timeout=120, patience=240, concurrency=64
    )
    yield client
    client.close()


@pytest.fixture
def model(vllm_server):
    return AutoModelForCausalLM.from_pretrained(vllm_server.model_folder, dtype=torch.float32).eval()


@pytest.fixture
def adapted(model, client, tmp_path):
    """A student with an adapter that says something, and who publishes it."""
    student = Student(add_lora(model, LoraSettings(rank=8, alpha=16, dropout=0.0, target_modules="all-linear"), 0))
    shake_adapter(student, seed=1)
    folder = fresh_folder(tmp_path)
    return student, AdapterPublisher(client, lambda: student.version, folder, run, no_wait, model=student.model)


@pytest.fixture
def whole(model, client, tmp_path):
    """A student that trains whole, and who publishes it; the server gets its own weights back."""
    student = Student(model)
    original = {name: weight.clone() for name, weight in model.state_dict().items()}
    publisher = WeightsPublisher(
        client, lambda: student.version, fresh_folder(tmp_path), run, no_wait, model=model, base="smollm2",
        dtype=torch.bfloat16,
    )  # fmt: skip
    yield student, publisher
    model.load_state_dict(original)
    student.version += 1
    publisher.publish()


def rendered(tokenizer, text):
    messages = [{"role": "user", "content": text}]
    return Prompt(
        tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)), text, ""
    )


def run(ask):
    ask()


def no_wait():
    pass


@torch.no_grad()
def shake_adapter(student, seed):
    """Give the adapter other weights, as an update would, but more of it."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in student.model.named_parameters():
        if "lora_B" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator) * ADAPTER)
    student.version += 1


@torch.no_grad()
def shake_weights(student, seed):
    """The same for all matrices."""
    generator = torch.Generator().manual_seed(seed)
    for weight in student.model.parameters():
        if weight.ndim == 2 and weight.shape[0] != V:
            weight += torch.randn(weight.shape, generator=generator) * weight.std() * WHOLE
    student.version += 1


def engine(client, publisher, **overrides):
    settings = {
        "choose": TEMPERATURE_ONE, "group_size": 2, "max_new_tokens": 24, "stop_ids": [2], "vocab_size": V, "rows": V,
        "seed": 7,
    }  # fmt: skip
    return VLLMServerRollouts(client, publisher, **flat({**settings, **overrides}))


@torch.no_grad()
def scored(model, rollouts, *choices):
    """The engine's log-probs (N,), and ours of the same tokens as drawn by each of ``choices``."""
    theirs, ours = [], [[] for _ in choices]
    scorer = TokenScorer(model, V)
    for part in split_by_tokens(rollouts, 512):  # those of like length together: padding takes time too
        batch = collate(part, 0)
        states = scorer.states(batch)
        logprobs = states.head.logits(states.hidden, states.head.matrix(torch.float32)).log_softmax(-1)
        theirs.append(batch.sampler_logprobs)
        for found, choose in zip(ours, choices, strict=True):
            found.append(choose.logprobs_of(logprobs, batch.targets))
    return torch.cat(theirs), *(torch.cat(each) for each in ours)


def mean_difference(theirs, ours):
    """Absolute, nats, but for tokens at the very edge of the nucleus, which are in it on one side only, and few."""
    inside = ours.isfinite()
    assert inside.float().mean() > 0.97
    return float((theirs - ours)[inside].abs().mean())


def gap(model, rollouts):
    return mean_difference(*scored(model, rollouts, TEMPERATURE_ONE))


@pytest.mark.parametrize("choose", [TEMPERATURE_ONE, NUCLEUS], ids=["temperature 1", "nucleus"])
def test_log_probs_are_those_that_tokens_were_drawn_with(client, adapted, prompts, choose):
    student, publisher = adapted
    rollouts = engine(client, publisher, choose=choose).sample(prompts, step=0)
    assert [r.position for r in rollouts] == [i for i, _ in prompts for _ in range(2)]
    assert [r.prompt for r in rollouts] == [prompt for _, prompt in prompts for _ in range(2)]
    assert len({tuple(r.completion.tolist()) for r in rollouts}) == len(rollouts), "the members of a group differ"
    theirs, ours, at_temperature_one = scored(student.model, rollouts, choose, TEMPERATURE_ONE)
    assert mean_difference(theirs, ours) < BOUND
    shifted = theirs[1:] - ours[:-1]
    assert shifted[shifted.isfinite()].abs().mean() > CLEARLY, "a shift by one is told apart"
    if choose is NUCLEUS:
        assert mean_difference(theirs, at_temperature_one) > CLEARLY, "temperature and top-p are in them"


def test_rows_that_are_no_tokens_of_both_models_are_not_drawn(client, adapted, prompts):
    """At the highest temperature, where draws are from all over the vocabulary."""
    student, publisher = adapted
    hot = NucleusSampling(2.0, 1.0)
    rollouts = engine(client, publisher, choose=hot, stop_ids=[], vocab_size=V - 1000, group_size=4).sample(prompts, 0)
    assert V - 5000 < max(int(r.completion.max()) for r in rollouts) < V - 1000
    theirs, ours = scored(student.model, rollouts, hot)
    assert mean_difference(theirs, ours) < BOUND


def test_a_stop_token_ends_the_completion_and_belongs_to_it(client, adapted, prompts):
    student, publisher = adapted
    stops = [i for i in range(V) if i % 29 == 3]
    rollouts = engine(client, publisher, stop_ids=stops, group_size=4).sample(prompts, step=1)
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        tokens = rollout.completion.tolist()
        assert not any(each in stops for each in tokens[:-1])
        assert (tokens[-1] in stops) == (rollout.finish == "stop")
        assert rollout.finish == "stop" or len(tokens) == 24
    assert gap(student.model, rollouts) < BOUND, "the stop token's log-prob among them"


def test_the_models_own_end_token_does_not_end_a_completion_unless_asked_for(client, whole, tokenizer):
    _, publisher = whole
    settings = {"choose": NucleusSampling(0.01, 0.01), "group_size": 1}
    # Which answers are short enough to end depends on how a processor rounds bf16.
    for text in ("What is the capital of France?", "Hello!", "What is 2 + 2?", "Are you a robot?", "Thank you!", "Bye"):
        question = [(0, rendered(tokenizer, text))]
        (asked,) = engine(client, publisher, **settings).sample(question, 0)
        if asked.completion[-1] == tokenizer.eos_token_id and len(asked.completion) < 24:
            break
    else:
        pytest.fail("no answer ended within 24 tokens")
    (not_asked,) = engine(client, publisher, stop_ids=[], **settings).sample(question, 0)
    assert tokenizer.eos_token_id in not_asked.completion[:-1]
    assert len(not_asked.completion) == 24


def test_seed_and_step_choose_the_draws(client, adapted, prompts):
    _, publisher = adapted

    def first_tokens(seed, step):
        rollouts = engine(client, publisher, seed=seed, max_new_tokens=1).sample(prompts, step)
        return [r.completion.tolist() for r in rollouts]

    base = first_tokens(7, 0)
    same = sum(a == b for a, b in zip(first_tokens(7, 0), base, strict=True))
    assert same >= len(base) - 1, "but for rounding, which depends on what else the server computes"
    assert first_tokens(8, 0) != base
    assert first_tokens(7, 1) != base


def test_a_new_adapter_acts_from_the_first_token_on(client, adapted, prompts):
    student, publisher = adapted
    sampler = engine(client, publisher)
    assert gap(student.model, sampler.sample(prompts, 0)) < BOUND
    with student.model.disable_adapter():
        assert gap(student.model, sampler.draw(prompts, 1)) > CLEARLY, "it is not the base's"

    shake_adapter(student, seed=2)
    assert gap(student.model, sampler.draw(prompts, 2)) > CLEARLY, "not sent yet"
    assert publisher.publish()
    assert not publisher.publish(), "nothing new"
    assert gap(student.model, sampler.draw(prompts, 3)) < BOUND
    first = engine(client, publisher, max_new_tokens=1, group_size=8).draw(prompts, 4)
    assert gap(student.model, first) < BOUND, "the first tokens, whose prompts were read under the old weights before"
    served = [card["id"] for card in client.get_from(client.urls[0], "/v1/models")["data"]]
    own = [name for name in served if name.startswith(publisher.served_model.removesuffix("2"))]
    assert own == [publisher.served_model], "old ones are let go"


def test_new_weights_act_from_the_first_token_on(client, whole, prompts):
    student, publisher = whole
    sampler = engine(client, publisher)
    assert gap(student.model, sampler.sample(prompts, 0)) < BOUND

    shake_weights(student, seed=1)
    assert gap(student.model, sampler.draw(prompts, 1)) > CLEARLY, "not sent yet"
    assert publisher.publish()
    assert gap(student.model, sampler.draw(prompts, 2)) < BOUND
    first = engine(client, publisher, max_new_tokens=1, group_size=8).draw(prompts, 3)
    assert gap(student.model, first) < BOUND, "the first tokens, whose prompts were read under the old weights before"

    # And that the test would see it: with one salt for all versions, keys and values of the old weights are used.
    one_token = engine(client, SameSalt(publisher), max_new_tokens=1, group_size=8)
    one_token.draw(prompts[-1:], 4)
    shake_weights(student, seed=2)
    publisher.publish()
    assert gap(student.model, one_token.draw(prompts[-1:], 5)) > BOUND


@pytest.mark.parametrize("which", ["adapted", "whole"])
def test_a_draw_survives_the_death_of_the_server(client, vllm_server, prompts, which, request):
    """With the weights that were published last, which the server that comes back does not have."""
    student, publisher = request.getfixturevalue(which)
    if which == "whole":
        shake_weights(student, seed=3)
    sampler = engine(client, publisher, max_new_tokens=96)
    sampler.refresh()
    begun, drawn = threading.Event(), []
    thread = threading.Thread(
        target=lambda: drawn.extend(sampler.draw(prompts, 0, finished=lambda _: begun.set())), daemon=True
    )
    watch = engine(client, publisher, max_new_tokens=1, group_size=1)
    thread.start()
    watch.draw(prompts[:1], 9)  # answered in the middle of the others
    assert thread.is_alive()
    vllm_server.restart()
    thread.join(timeout=200)
    assert not thread.is_alive()
    assert len(drawn) == 2 * len(prompts)
    assert gap(student.model, drawn) < BOUND


def test_the_server_is_looked_at_before_a_run(client, tokenizer):
    assert check_engine(client, tokenizer, longest=1024, choose=NUCLEUS) == "smollm2"
    with pytest.raises(UserError, match="--max-model-len 1025"):
        check_engine(client, tokenizer, longest=1025, choose=NUCLEUS)
    with pytest.raises(UserError, match="splits text into other tokens"):
        check_engine(client, make_tokenizer(), longest=10, choose=NUCLEUS)
