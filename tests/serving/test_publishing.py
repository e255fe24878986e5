"""When weights are sent, in what order, and that no server is left with others."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from local_distill.errors import RunError
from local_distill.serving.client import HttpClient
from local_distill.serving.publishing import AdapterPublisher, Gate, WeightsPublisher, fresh_folder
from tests.fake_vllm import FakeVLLM
from tests.tiny_models import llama_config, make_model

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class Student:
    """A model, and how often it was updated."""

    def __init__(self, model):
        self.model, self.version = model, 0

    def model_state(self):
        return self.model.state_dict()

    def update(self):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += 0.5
        self.version += 1


@pytest.fixture
def servers():
    pair = [FakeVLLM(), FakeVLLM()]
    yield pair
    for each in pair:
        each.close()


@pytest.fixture
def client(servers):
    urls = [each.url for each in servers]
    client = HttpClient(urls, flag="--rollouts_url", key_variable="NONE", timeout=5, patience=0.5, concurrency=8)
    yield client
    client.close()


@pytest.fixture
def adapter(client, tmp_path):
    student = Student(get_peft_model(make_model(llama_config(layers=1)), LoraConfig(target_modules=["q_proj"])))
    return student, make(AdapterPublisher, client, student, tmp_path, model=student.model)


@pytest.fixture
def whole(client, tmp_path):
    student = Student(make_model(llama_config(layers=1, tie_word_embeddings=True)))
    special = {"model": student.model, "base": "base", "dtype": torch.bfloat16}
    return student, make(WeightsPublisher, client, student, tmp_path, **special)


def make(kind, client, student, folder, barrier=lambda: None, **special):
    return kind(client, lambda: student.version, fresh_folder(folder), lambda ask: ask(), barrier, **special)


def test_only_changed_weights_are_sent_and_to_every_server(adapter, servers):
    student, publisher = adapter
    assert publisher.publish(), "those that it starts with: the server has only the base"
    assert not publisher.publish()
    student.update()
    assert publisher.publish()
    for server in servers:
        assert len(server.bodies(LOAD)) == 2
        assert list(server.adapters) == [publisher.served_model], "the older one is let go"


def test_an_adapter_is_written_as_it_is_and_each_under_a_name_and_a_path_of_its_own(adapter, servers):
    student, publisher = adapter
    names, paths = set(), []
    for _ in range(3):
        publisher.publish()
        (name, path), *_ = servers[0].adapters.items()
        weights = load_file(Path(path) / "adapter_model.safetensors")
        expected = student.model.state_dict()["base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"]
        torch.testing.assert_close(
            weights["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"], expected, rtol=0, atol=0
        )
        mode = (Path(path) / "adapter_model.safetensors").stat().st_mode
        assert mode == (Path(path) / "adapter_config.json").stat().st_mode, "a server may be another user's"
        assert name == publisher.served_model
        names.add(name)
        paths.append(Path(path))
        student.update()
    assert len(names) == len(set(paths)) == 3
    assert [path.exists() for path in paths] == [False, False, True]


def test_two_runs_in_one_folder_share_no_name(client, tmp_path):
    student = Student(get_peft_model(make_model(llama_config(layers=1)), LoraConfig(target_modules=["q_proj"])))
    first, second = (make(AdapterPublisher, client, student, tmp_path, model=student.model) for _ in range(2))
    first.publish()
    second.publish()
    assert first.served_model != second.served_model
    assert first.salt != second.salt


def test_all_weights_are_written_and_named(whole, servers):
    student, publisher = whole
    publisher.publish()
    student.update()
    publisher.publish()
    for server in servers:
        assert server.weight_version == publisher.salt
        assert server.loaded == servers[0].loaded
    weights = load_file(Path(servers[0].loaded) / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    for name, weight in student.model.state_dict().items():
        if name in weights:
            torch.testing.assert_close(weights[name], weight.bfloat16(), rtol=0, atol=0)
    assert set(student.model.state_dict()) - set(weights) == {"lm_head.weight"}, "tied weights are written once"
    assert publisher.served_model == "base"


def test_a_server_with_weights_of_its_own_start_is_given_ours_before_a_request(whole, servers):
    _, publisher = whole
    publisher.publish()
    servers[1].forget()
    publisher.look()
    assert [len(server.bodies("/collective_rpc")) for server in servers] == [1, 2]
    assert servers[1].weight_version == publisher.salt


def test_a_server_that_another_run_uses_as_well_ends_the_run(whole, servers):
    _, publisher = whole
    publisher.publish()
    servers[1].weight_version = "/somebody/else/3"
    with pytest.raises(RunError, match=r"other weights than this run gave it .*/somebody/else/3.*; let no other run"):
        publisher.look()


def test_an_adapter_that_is_there_already_is_no_mistake(adapter, servers):
    """The answer to the first request was lost: it is made again."""
    _, publisher = adapter
    lost = iter([503])

    def lose(path, body):
        status = next(lost, None) if path == LOAD else None
        if status:
            servers[0].v1_load_lora_adapter(body)
        return None if status is None else (status, {"error": {"message": "gone"}})

    servers[0].before = lose
    publisher.publish()
    assert len(servers[0].bodies(LOAD)) == 2
    assert list(servers[0].adapters) == [publisher.served_model]


@pytest.mark.parametrize("which", ["adapter", "whole"])
def test_a_server_that_was_restarted_is_given_the_last_weights_again_and_no_other_is(which, servers, request):
    student, publisher = request.getfixturevalue(which)
    publisher.publish()
    student.update()  # not published: not to be sent
    for server in servers:
        server.asked.clear()
    servers[0].forget()
    threads = [threading.Thread(target=publisher.again, args=[server.url]) for server in servers for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = {"adapter": LOAD, "whole": "/collective_rpc"}[which]
    assert [len(server.bodies(sent)) for server in servers] == [1, 0]
    if which == "adapter":
        assert servers[0].adapters == servers[1].adapters
        assert list(servers[0].adapters) == [publisher.served_model]
    else:
        assert servers[0].loaded == servers[1].loaded
        assert servers[0].weight_version == publisher.salt


def test_a_server_that_takes_no_adapters_is_told_what_to_start_with(adapter, servers):
    _, publisher = adapter
    servers[1].before = lambda path, _: (404, {"detail": "Not Found"}) if path == LOAD else None
    with pytest.raises(RunError, match=r"--rollouts_url .*404: Not Found; .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        publisher.publish()


def test_a_server_that_takes_no_weights_is_told_what_to_start_with(whole, servers):
    _, publisher = whole
    servers[1].before = lambda path, _: (404, {"detail": "Not Found"}) if path == "/collective_rpc" else None
    with pytest.raises(RunError, match=r"404: Not Found; .*VLLM_SERVER_DEV_MODE=1"):
        publisher.publish()


def test_weights_wait_for_draws_and_draws_for_weights(adapter, servers):
    student, publisher = adapter
    publisher.publish()
    student.update()
    begun, events = threading.Event(), []
    entered = threading.Event()

    def draw_long():
        with publisher.drawing():
            begun.set()
            time.sleep(0.15)
            events.append("drawn")

    def draw_later():
        with publisher.drawing():
            events.append("drawn with the new")

    def slowly(path, _body):
        if path == LOAD:
            entered.set()
            time.sleep(0.1)
            events.append("sent")

    servers[0].before = slowly
    threads = [threading.Thread(target=draw_long), threading.Thread(target=publisher.publish)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    entered.wait(timeout=5)
    threads.append(threading.Thread(target=draw_later))
    threads[2].start()
    for thread in threads:
        thread.join()
    assert events == ["drawn", "sent", "drawn with the new"]


def test_draws_go_on_side_by_side():
    gate, together = Gate(), threading.Barrier(3)

    def draw():
        with gate.drawing():
            together.wait(timeout=3)

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together.broken


def test_all_processes_meet_before_weights_are_sent(client, servers, tmp_path):
    student = Student(make_model(llama_config(layers=1)))
    seen = []
    publisher = make(
        WeightsPublisher, client, student, tmp_path, lambda: seen.append(len(servers[0].asked)),
        model=student.model, base="base", dtype=torch.bfloat16,
    )  # fmt: skip
    publisher.publish()
    publisher.publish()
    assert seen == [0]
