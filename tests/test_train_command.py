"""Whole runs of the documented command: what it learns, what it leaves, and contract 8, exact resuming."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny_models import gpt2_config, make_tokenizer, save_model

ROOT = Path(__file__).parent.parent
ENTRY = [sys.executable, "-m", "local_distill.train_on_policy_local"]
SMALL = [
    "--batch_size", "4", "--group_size", "2", "--max_new_tokens", "12", "--max_prompt_tokens", "90",
    "--learning_rate", "3e-3", "--eval_every", "2", "--eval_prompts", "6",
]  # fmt: skip
ON_POLICY = ["--temperature", "1", "--top_p", "1"]
TIMING = ("seconds", "tokens_per_second", "peak_memory")


@pytest.fixture
def pair(folders):
    return ["--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"]), *SMALL]


def timed_metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def metrics(folder):
    """All but the timing, which no two runs share."""
    return [{k: v for k, v in line.items() if not k.startswith(TIMING)} for line in timed_metrics(folder)]


def same_files(ours: Path, theirs: Path):
    """Every tensor of two checkpoints, bit for bit; and something to compare."""
    names = sorted(f.relative_to(ours).as_posix() for f in ours.rglob("*.safetensors"))
    assert names == sorted(f.relative_to(theirs).as_posix() for f in theirs.rglob("*.safetensors"))
    assert any("optimizer" in name for name in names)
    for name in names:
        a, b = load_file(ours / name), load_file(theirs / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_the_documented_cpu_demo_runs_as_it_is_written(tmp_path):
    """sshleifer/tiny-gpt2, found under its hub id in a cache laid out as the hub client lays it out."""
    repository = tmp_path / "cache" / "models--sshleifer--tiny-gpt2"
    save_model(repository / "snapshots" / "abc123", gpt2_config(), make_tokenizer())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    command = (
        "--student_model sshleifer/tiny-gpt2 --teacher_model sshleifer/tiny-gpt2 --steps 3 --batch_size 2 "
        "--max_new_tokens 16 --group_size 2"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*ENTRY, *command.split()], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a run that goes well says nothing on stderr"
    assert "\x1b" not in done.stdout, "plain when not a terminal"
    assert "step 3/3  reverse KL" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[:9])
    assert list(told) == ["student", "teacher", "loss", "prompts", "steps", "learning", "machine", "memory", "folder"]
    assert re.fullmatch(r"sshleifer/tiny-gpt2, [\d.]+ k parameters, all trained", told["student"])
    assert told["loss"] == (
        "reverse_kl over every token, exact, for the teacher gives its whole distribution (--loss auto)"
    )
    assert told["steps"] == "3, each of 2 prompts × 2 rollouts of at most 16 tokens"
    assert (told["learning"], told["machine"]) == ("rate 1e-5, constant", "1 process, fp32, on cpu")
    assert re.fullmatch(r"models and optimizer take 0.0 of [\d.]+ GiB free", told["memory"])
    assert told["folder"] == str(run.relative_to(tmp_path))
    # Contract 1, through the whole program: the teacher is the student.
    assert all(abs(line["reverse_kl"]) < 1e-6 for line in metrics(run) if "reverse_kl" in line)
    before = load_file(repository / "snapshots" / "abc123" / "model.safetensors")
    after = load_file(run / "step-3" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_learns_and_leaves_what_it_promises(pair, run_command, tmp_path):
    larger = ["--batch_size", "16", "--group_size", "4", "--steps", "40", "--eval_every", "0", "--output_dir", "run"]
    code, out, _ = run_command([*pair, *ON_POLICY, *larger])
    assert code == 0
    run = tmp_path / "run"
    records = metrics(run)
    evaluations = [r["eval/reverse_kl"] for r in records if "eval/reverse_kl" in r]
    assert len(evaluations) == 2
    assert evaluations[1] < 0.7 * evaluations[0]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 41))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(run / "step-40"),
        AutoTokenizer.from_pretrained(run / "step-40"),
    )
    assert model.generate(**tokenizer("the quick", return_tensors="pt"), max_new_tokens=2).shape[1] >= 3
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"]["reverse_kl"] == evaluations[0]
    assert summary["after"]["reverse_kl"] == evaluations[1]
    pairs = zip(summary["before"]["completions"], summary["after"]["completions"], strict=True)
    assert all(before["prompt"] == after["prompt"] for before, after in pairs)
    assert "before" in out
    assert "after" in out
    assert (run / "summary.md").is_file()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(pair, run_command, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run_command([*pair, "--steps", "2", "--seed", seed, "--output_dir", name])[0] == 0
    same_files(tmp_path / "a" / "step-2", tmp_path / "b" / "step-2")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")


@pytest.mark.parametrize(
    "change", ["--grad_accum 3", "--grad_accum 99", "--sampling_batch_size 3", "--microbatch_tokens 150"]
)
def test_micro_batches_change_nothing_but_rounding(pair, run_command, tmp_path, change):
    for name, more in (("a", []), ("b", change.split())):
        assert run_command([*pair, "--steps", "2", "--output_dir", name, *more])[0] == 0
    for ours, theirs in zip(metrics(tmp_path / "a"), metrics(tmp_path / "b"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


VARIANTS = {
    "full": [],
    "LoRA with dropout": ["--use_lora", "--lora_r", "4", "--lora_dropout", "0.3"],
    "substeps and accumulation": ["--num_substeps", "2", "--grad_accum", "2"],
    "ppo with discount, twice": ["--loss", "ppo", "--kl_discount", "0.9", "--epochs_per_batch", "2"],
    "schedule, and growing completions": (
        ["--start_new_tokens", "2", "--lr_scheduler", "cosine", "--warmup_steps", "2", "--weight_decay", "0.1"]
    ),
    "whole distributions, the teacher's text too": (
        ["--loss", "reverse_kl", "--grad_accum", "3", "--teacher_share", "0.5", "--teacher_share_steps", "9"]
    ),
    "the teacher's top tokens": ["--loss", "jsd", "--jsd_beta", "0.3", "--top_k", "9", "--num_substeps", "2"],
    "gradient checkpointing, bf16": ["--gradient_checkpointing", "--dtype", "bf16"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(pair, run_command, tmp_path, variant):
    arguments = [*pair, *VARIANTS[variant], "--save_every", "3", "--keep_checkpoints", "9"]
    assert run_command([*arguments, "--steps", "5", "--output_dir", "whole"])[0] == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "step-5")  # as if it had died after step 5, whose records are there
    code, out, err = run_command([*arguments, "--steps", "5", "--output_dir", "broken", "--resume"])
    assert code == 0, err
    assert "going on from broken/step-3" in out
    same_files(tmp_path / "whole" / "step-5", tmp_path / "broken" / "step-5")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "broken")
    completions = [(tmp_path / run / "completions.jsonl").read_bytes() for run in ("whole", "broken")]
    assert completions[0] == completions[1]


def test_more_steps_go_on_from_a_finished_run(pair, run_command, tmp_path):
    assert run_command([*pair, "--steps", "4", "--output_dir", "whole"])[0] == 0
    assert run_command([*pair, "--steps", "2", "--output_dir", "longer"])[0] == 0
    assert run_command([*pair, "--steps", "4", "--output_dir", "longer", "--resume"])[0] == 0
    same_files(tmp_path / "whole" / "step-4", tmp_path / "longer" / "step-4")
    code, out, _ = run_command([*pair, "--steps", "4", "--output_dir", "longer", "--resume"])
    assert code == 0, "nothing left to do is no mistake"
    assert "summary" in out


def test_lora_trains_an_adapter_of_gpt2_that_loads_on_the_base(folders, run_command, tmp_path):
    from peft import PeftModel

    arguments = [
        "--student_model",
        str(folders["gpt2"]),
        "--teacher_model",
        str(folders["teacher"]),
        *SMALL,
        *ON_POLICY,
    ]
    assert run_command([*arguments, "--use_lora", "--lora_r", "4", "--steps", "10", "--output_dir", "run"])[0] == 0
    evaluations = [r["eval/reverse_kl"] for r in metrics(tmp_path / "run") if "eval/reverse_kl" in r]
    assert evaluations[-1] < evaluations[0]
    step = tmp_path / "run" / "step-10"
    assert not (step / "model.safetensors").exists(), "the base is not copied"
    adapter = load_file(step / "adapter_model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in adapter.values())
    assert any(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["gpt2"]), step)
    assert loaded.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2).shape[1] >= 3


def start(arguments, folder):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*ENTRY, *arguments], env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05])
def test_a_run_killed_while_it_saves_goes_on_from_a_whole_checkpoint(pair, run_command, tmp_path, delay):
    arguments = [*pair, "--steps", "8", "--save_every", "1", "--eval_every", "0"]
    assert run_command([*arguments, "--output_dir", "whole"])[0] == 0
    process = start([*arguments, "--output_dir", "killed"], tmp_path)
    saving = tmp_path / "killed"
    wait_for(lambda: (saving / "step-2").exists() and any(saving.glob(".partial-*")), process)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert run_command([*arguments, "--output_dir", "killed", "--resume"])[0] == 0
    same_files(tmp_path / "whole" / "step-8", tmp_path / "killed" / "step-8")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    assert not list(saving.glob(".*")), "what the killed run left is cleared away"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(pair, run_command, tmp_path, number, code):
    arguments = [*pair, "--steps", "2000", "--save_every", "0", "--eval_every", "0"]
    process = start([*arguments, "--output_dir", "run"], tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("loss") >= 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    done = max(r["step"] for r in metrics(tmp_path / "run"))
    assert (tmp_path / "run" / f"step-{done}" / "manifest.json").is_file(), "the step that was under way is saved"
    assert "Traceback" not in err
    assert "report: run/report.html" in out.splitlines()
    assert (tmp_path / "run" / "report.html").is_file()
    command = next(line for line in out.splitlines() if "--resume" in line)
    words = command.split("-m local_distill.train_on_policy_local ")[1].split()
    code, out, _ = run_command([*words, "--steps", str(done + 1)])
    assert code == 0, "the command that was given goes on"
    assert f"going on from run/step-{done}" in out


def test_updates_that_are_not_finite_are_skipped_and_stop_the_run(pair, folders, run_command, tmp_path):
    """A teacher that is sound on the tokens that are tried at the start, and NaN on all others."""
    shutil.copytree(folders["teacher"], tmp_path / "broken")
    weights = load_file(folders["teacher"] / "model.safetensors")
    weights["model.embed_tokens.weight"][9:] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    arguments = [*pair, "--steps", "30", "--save_every", "2", "--output_dir", "run"]
    arguments[arguments.index("--teacher_model") + 1] = "broken"
    code, out, err = run_command(arguments)
    assert code == 2
    assert "5 updates in a row had a NaN or infinite loss or gradient" in err
    assert "the last good checkpoint is run/step-4" in err
    assert "skipped" in out
    before = load_file(folders["student"] / "model.safetensors")
    after = load_file(tmp_path / "run" / "step-4" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_prompts_with_answers_and_a_chat_template_from_a_jsonl_file(folders, run_command, tmp_path):
    lines = [json.dumps({"prompt": f"why is the sky {i}", "answer": str(i)}) for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    chat = ["--student_model", str(folders["chat"]), "--teacher_model", str(folders["chat"]), *SMALL]
    code, out, _ = run_command(
        [*chat, "--prompts_file", "prompts.jsonl", "--system_prompt", "be brief", "--steps", "1", "--output_dir", "run"]
    )
    assert code == 0
    assert "14 to train on and 6 held out" in out


def test_stop_tokens_that_differ_are_said_and_saved(folders, run_command, tmp_path):
    pair = ["--student_model", str(folders["student"]), "--teacher_model", str(folders["chat"]), *SMALL]
    code, out, _ = run_command([*pair, "--steps", "1", "--output_dir", "run"])
    assert code == 0
    assert "student and teacher end on different tokens" in out
    saved = json.loads((tmp_path / "run" / "step-1" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [0, 2]


def test_a_profile_has_a_trace_and_a_table_of_the_steps_it_watched(pair, run_command, tmp_path):
    code, out, err = run_command([*pair, "--steps", "4", "--profile", "2", "--output_dir", "run"])
    assert code == 0, err
    trace = json.loads(gzip.decompress((tmp_path / "run" / "profile" / "trace.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert sum(name == "phase: train" for name in names) == 2, "steps 2 and 3"
    table = (tmp_path / "run" / "profile" / "profile.md").read_text(encoding="utf-8")
    phases = dict(re.findall(r"\| (\w+) \| ([\d.]+) \|$", table, re.MULTILINE))  # the rows of two columns
    assert list(phases) == ["sample", "score", "train"]
    steps = [line for line in timed_metrics(tmp_path / "run") if line["step"] in (2, 3) and "loss" in line]
    for name, seconds in phases.items():
        measured = sum(line[f"seconds/{name}"] for line in steps) / 2
        assert float(seconds) == pytest.approx(measured, rel=0.3, abs=0.005)
    assert "aten::" in table
    assert "trace in run/profile/trace.json.gz" in out
    code, out, err = run_command([*pair, "--steps", "5", "--profile", "2", "--output_dir", "run", "--resume"])
    assert code == 0, err
    assert "--profile 2: nothing is profiled" in out, "said, not left out in silence"


def test_settings_of_an_adapter_that_there_is_not_are_spoken_of(pair, run_command):
    code, out, _ = run_command([*pair, "--steps", "1", "--lora_r", "4", "--output_dir", "full"])
    assert code == 0
    assert "--lora_r is not used: all weights are trained, an adapter wants --use_lora" in out
    code, out, _ = run_command([*pair, "--steps", "1", "--lora_r", "4", "--use_lora", "--output_dir", "adapter"])
    assert code == 0
    assert "is not used" not in out


def test_a_run_with_continuous_batching_trains_on_what_it_really_sampled(pair, tmp_path):
    """At temperature 1 the engine's own log-probs are the student's: every ratio is one."""
    run = [*ENTRY, *pair, *ON_POLICY, "--rollouts", "continuous", "--loss", "importance_sampling", "--steps", "3"]
    done = subprocess.run([*run, "--output_dir", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    steps = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert len(steps) == 3
    for step in steps:
        assert step["ratio/mean"] == pytest.approx(1, abs=1e-4)
        assert step["ratio/effective"] == pytest.approx(1, abs=1e-4)


def test_one_held_out_prompt_has_no_standard_error_anywhere(pair, run_command, tmp_path):
    code, out, _ = run_command([*pair, "--steps", "1", "--eval_prompts", "1", "--output_dir", "run"])
    assert code == 0
    written = [(tmp_path / "run" / name).read_text() for name in ("summary.md", "metrics.jsonl", "report.html")]
    for text in (out, written[0]):
        assert "reverse KL" in text
        assert not re.search(r"± ?nan|\bnan\b", text)
    assert "reverse_kl_se" not in written[1]
    assert "± nan" not in written[2]
