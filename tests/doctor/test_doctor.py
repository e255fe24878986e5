"""local-distill doctor: each thing in a line, what to do where it is not right, and nothing secret."""

import json
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from local_distill.commands import main
from local_distill.doctor import machine, network
from local_distill.doctor.findings import BAD, OK, WARN
from local_distill.plan.machine import GIB

ENVIRONMENT = {"python": "3.11", "platform": "Linux", "packages": {"torch": "2.13.0"}, "devices": []}


@pytest.fixture
def examined(capsys, monkeypatch):
    """``examined(*words)``: the exit code, and the findings by what they are about."""
    monkeypatch.setattr(network, "TRACKERS", ("tensorboard",))  # wandb is slow to import

    def run(*words):
        code = main(["doctor", *words, "--json"])
        found = json.loads(capsys.readouterr().out)
        return code, {each["about"]: each for each in found["findings"]}, found["environment"]

    return run


def test_a_line_each_and_code_0(capsys, monkeypatch):
    monkeypatch.setattr(network, "TRACKERS", ())
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    about = [line.split()[1] for line in lines]
    for each in ("python", "packages", "gpu", "memory", "runs", "allocator", "threads", "proxies", "trackers", "hub"):
        assert each in about


def test_nothing_secret_is_shown_and_a_server_that_is_away_is_bad(examined, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    code, found, environment = examined("--teacher_url", "http://127.0.0.1:9")
    assert code == 1
    assert found["server"]["mark"] == BAD
    assert "http://127.0.0.1:9" in found["server"]["words"]
    assert "http://***@proxy.example:3128" in found["proxies"]["words"]
    everything = json.dumps([found, environment])
    assert "secret" not in everything
    assert "k" * 40 not in everything
    assert environment["packages"]["torch"] in found["packages"]["words"]
    assert (found["hub"]["mark"], "HF_HUB_OFFLINE" in found["hub"]["words"]) == (OK, True)


def test_a_server_says_what_it_serves(monkeypatch):
    cards = [{"id": "Qwen/Qwen3-4B", "owned_by": "vllm"}]
    monkeypatch.setattr(network.HttpClient, "get_from", lambda *_, **__: cards)
    (found,) = network.servers("http://127.0.0.1:9/v1", "--teacher_url", "NO_KEY")
    assert (found.mark, str(found)) == (OK, "--teacher_url http://127.0.0.1:9 serves Qwen/Qwen3-4B")


def test_an_address_that_is_none_is_a_mistake(capsys):
    assert main(["doctor", "--rollouts_url", "nowhere"]) == 2
    assert "--rollouts_url: 'nowhere' is no address" in capsys.readouterr().err


def test_a_hub_that_is_away_names_the_mirror(monkeypatch):
    monkeypatch.setattr(network, "is_offline", lambda: False)
    monkeypatch.setattr(network, "endpoint", lambda: "https://hf-mirror.example")
    monkeypatch.setattr(network, "why_unreachable", lambda *_: "timed out")
    found = network.hub()
    assert found.mark == WARN
    assert "https://hf-mirror.example does not answer (timed out); " in str(found)
    assert "HF_ENDPOINT" in found.remedy
    monkeypatch.setattr(network, "why_unreachable", lambda *_: "")
    assert network.hub().mark == OK


def test_what_is_missing_or_too_old_makes_training_impossible(monkeypatch):
    wanted = [Requirement("torch>=99"), Requirement("no-such-package-here>=1"), Requirement("peft>=0.1")]
    monkeypatch.setattr(machine, "_requirements", lambda: wanted)
    _, found = machine.versions(ENVIRONMENT)
    assert found.mark == BAD
    assert "is not >=99" in found.words
    assert "no-such-package-here is missing" in found.words
    assert "peft" not in found.words
    assert "pip install" in found.remedy


def test_a_driver_without_a_torch_for_it_is_told(monkeypatch):
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    (found,) = machine.gpus(ENVIRONMENT)
    assert found.mark == WARN
    assert "torch" in found.remedy
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    (found,) = machine.gpus(ENVIRONMENT)
    assert found.mark == OK


@pytest.mark.parametrize(("free", "mark", "nccl"), [(70, OK, True), (10, WARN, False)])
def test_several_gpus(monkeypatch, free, mark, nccl):
    cuda = machine.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "mem_get_info", lambda _: (free * GIB, 80 * GIB))
    monkeypatch.setattr(cuda, "get_device_name", lambda _: "A800")
    monkeypatch.setattr(cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(machine.torch.distributed, "is_nccl_available", lambda: nccl)
    *cards, link = machine.gpus(ENVIRONMENT)
    assert [card.mark for card in cards] == [mark] * 2
    assert f"A800, {free}.0 of 80.0 GiB free" in cards[0].words
    assert "bf16" in cards[0].words
    assert link.mark == (OK if nccl else BAD)


def test_little_room_is_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB))
    runs, cache = machine.disks(str(tmp_path / "not" / "yet"))
    assert (runs.mark, cache.mark) == (WARN, WARN)
    assert "--output_dir" in runs.remedy
    assert "HF_HOME" in cache.remedy
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * GIB, available=GIB))
    assert machine.memory().mark == WARN


@pytest.mark.parametrize(("preload", "mark"), [("libtcmalloc.so", OK), ("", WARN)])
def test_the_allocator(monkeypatch, preload, mark):
    monkeypatch.setenv("LD_PRELOAD", preload)
    monkeypatch.setattr(machine, "glibc_allocates", lambda: not preload)
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    assert machine.allocator().mark == mark
