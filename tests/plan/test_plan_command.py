"""local-distill plan as a whole, from folders with a config.json and nothing else."""

import json
import platform
import re

import pytest

from local_distill.commands import main
from local_distill.plan import machine
from tests.plan.shapes import save


@pytest.fixture
def pair(tmp_path):
    """Qwen3-4B and Qwen3-32B, one layer of each."""
    return save(tmp_path / "student", "4B", layers=1), save(tmp_path / "teacher", "32B", layers=1)


def plan(capsys, *words):
    code = main(["plan", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_plan_from_a_yaml_file_and_flags_for_gpus_that_are_not_here(pair, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(f"student_model: {pair[0]}\nteacher_model: {pair[1]}\nuse_lora: true\nmax_new_tokens: 64\n")
    words = ("--config", file, "--gpus", 2, "--gpu_memory", 80, "--max_prompt_tokens", 64, "--json")
    code, out, _ = plan(capsys, *words)
    found = json.loads(out)
    assert code == 0
    assert found["fits"]
    assert (found["device"], found["processes"], found["memory"]) == ("cuda", 2, 0.98 * 80 * 2**30)
    assert found["parameters"]["student"] == 4_022_468_096 - 35 * (4_022_468_096 - 151_936 * 2560 - 2560) // 36
    assert found["totals"] == {name: pytest.approx(sum(parts.values())) for name, parts in found["phases"].items()}
    assert list(found["totals"]) == ["loading", "sampling", "scoring", "training"]
    assert found["change"] is None


def test_a_plan_that_does_not_fit_ends_with_another_code_and_advice(pair, capsys):
    words = ("--student_model", pair[0], "--teacher_model", pair[1], "--gpu_memory", 4, "--max_new_tokens", 16)
    code, out, _ = plan(capsys, *words, "--max_prompt_tokens", 16)
    assert code == 1
    verdict, advice, *_ = out.splitlines()
    assert verdict.startswith("does not fit: ")
    assert "smallest change" in advice or "no change" in advice
    assert "too much" in out


def test_the_verdict_comes_first_and_a_terminal_sees_that_it_works(pair, capsys, monkeypatch):
    words = ("--student_model", pair[0], "--teacher_model", pair[1], "--max_new_tokens", 16, "--max_prompt_tokens", 16)
    code, out, err = plan(capsys, *words, "--gpu_memory", 80)
    assert code == 0
    assert re.match(r"fits: fullest phase \d+\.\d of 78\.4 GiB, while (loading|sampling|scoring|training)\n", out)
    assert err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    _, _, err = plan(capsys, *words, "--gpu_memory", 80, "--json")
    assert err.startswith("reading configurations")
    assert err.endswith("\x1b[2K"), "and it is gone before the plan is shown"


def test_this_machine_is_its_memory_or_its_container_s(pair, tmp_path, capsys, monkeypatch):
    words = ("--student_model", pair[0], "--teacher_model", pair[0], "--dtype", "fp32", "--max_new_tokens", 8)
    (tmp_path / "memory.max").write_text(str(50 * 2**30))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 100 * 2**30}))
    _, out, _ = plan(capsys, *words, "--max_prompt_tokens", 8, "--json")
    found = json.loads(out)
    assert (found["device"], found["memory"]) == ("cpu", 50 * 2**30)
    assert found["phases"]["loading"]["libraries"] > 100 * 2**20, "what this process holds"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_another_allocator_than_glibc_s_is_told_of_and_taken_into_account(pair, capsys, monkeypatch):
    words = ("--student_model", pair[0], "--teacher_model", pair[0], "--max_new_tokens", 8, "--max_prompt_tokens", 8)
    monkeypatch.setenv("LD_PRELOAD", "")
    _, with_glibc, _ = plan(capsys, *words)
    assert re.search(r"^~ allocator +\d", with_glibc, re.MULTILINE)
    assert "tcmalloc" in with_glibc
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc_minimal.so.4")
    _, with_another, _ = plan(capsys, *words)
    assert "allocator" not in with_another


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus: 0 given"),
        (["--gpu_memory", "-1"], "--gpu_memory: -1 given"),
        (["--gpus", "2"], "say how large they are with --gpu_memory"),
        (["--gpus", "16", "--gpu_memory", "80"], "--batch_size: 8 given for 16 GPUs"),
        (["--gpu_memory", "80", "--zero2", "--dtype", "fp32"], "--zero2: DeepSpeed shards"),
        (["--max_new_tokens", "40960"], "--max_new_tokens: 40960 given"),
        (["--gpu", "2"], "did you mean --gpus"),
        (["--student_model", "./nowhere"], "--student_model ./nowhere: no such folder"),
    ],
)
def test_mistakes_are_told_in_one_line(pair, capsys, words, message):
    code, _, err = plan(capsys, "--student_model", pair[0], "--teacher_model", pair[1], *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
