"""The check inside train: what cannot fit is not begun, what might fit is."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from local_distill.errors import UserError
from local_distill.plan import advice, machine
from local_distill.plan.advice import check_memory
from local_distill.plan.memory import Memory
from tests.plan.test_memory import run

WORDS = "0.0 GiB are free"
ACCELERATOR = SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture
def starting(monkeypatch):
    """``starting(share, **settings)``: the check of a run on that share of what it certainly needs."""

    def start(share, **settings):
        planned = run(**{"device": "cpu", "dtype": torch.float32, **settings})
        needed = max(phase.certain_bytes for phase in Memory(planned).phases(1, 1))
        planned = dataclasses.replace(
            planned, machine=dataclasses.replace(planned.machine, memory=share * needed, words=WORDS)
        )
        monkeypatch.setattr(advice, "run_that_starts", lambda *_: planned)
        said = []
        check_memory(SimpleNamespace(config=planned.config), ACCELERATOR, said.append)
        return said

    return start


def test_a_run_that_fits_or_just_fits_is_begun_in_silence(starting):
    assert starting(5.0) == []
    assert starting(1.001) == []


def test_a_run_that_cannot_fit_is_refused_with_the_phase_the_sizes_and_the_way_out(starting):
    with pytest.raises(UserError, match=r"training needs at least .* GiB .* free") as refused:
        starting(0.98)
    assert "smallest change" in str(refused.value) or "no change" in str(refused.value)
    assert "--force goes on" in str(refused.value)


def test_forced_it_goes_on_with_a_warning(starting):
    (warning,) = starting(0.98, force=True)
    assert warning.startswith("--force: training needs")


def test_what_is_estimated_is_no_reason_to_refuse(starting):
    assert starting(1.001, device="cuda", processes=2) == []


def test_other_devices_are_left_alone(monkeypatch):
    monkeypatch.setattr(advice, "run_that_starts", lambda *_: pytest.fail("looked"))
    check_memory(SimpleNamespace(), SimpleNamespace(device=torch.device("mps")), print)


def test_processes_of_a_machine_share_its_memory_and_the_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=80.0))
    monkeypatch.setattr(machine.psutil, "swap_memory", lambda: SimpleNamespace(free=20.0))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cpu = torch.device("cpu")
    assert machine.free_for_a_run(cpu, 2).memory == 50.0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine.free_for_a_run(cpu, 8).memory == 25.0
    (tmp_path / "memory.max").write_text("60")
    (tmp_path / "memory.current").write_text("30")
    (tmp_path / "memory.stat").write_text("anon 10\nfile 10\n")
    assert machine.free_for_a_run(cpu, 8).memory == (60 - (30 - 10)) / 4
    (tmp_path / "memory.max").write_text("max")
    assert machine.free_for_a_run(cpu, 8).memory == 25.0


@pytest.mark.parametrize("free", [1e12, 1.0])
def test_the_documented_command_looks_before_it_loads(folders, run_command, monkeypatch, free):
    monkeypatch.setattr(machine, "CGROUP", folders["student"])
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=free))
    monkeypatch.setattr(machine.psutil, "swap_memory", lambda: SimpleNamespace(free=0.0))
    words = ["--student_model", folders["student"], "--teacher_model", folders["teacher"], "--steps", 1]
    words += ["--batch_size", 2, "--group_size", 1, "--max_new_tokens", 4, "--eval_prompts", 0, "--output_dir", "run"]
    code, _, err = run_command(words)
    if free > 1.0:
        assert code == 0
        return
    assert code == 2
    assert "GiB are free" in err
    code, out, err = run_command([*words, "--force"])
    assert code == 0
    assert "will probably run out of memory" in out
