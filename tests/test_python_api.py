"""The package as a library: light to import, usable twice in one process, from a thread, beside other code."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState

import local_distill
from local_distill import Evaluation, TrainConfig, TrainResult, UserError, train
from local_distill.runs.records import read_evaluations

PAGE = Path(__file__).parent.parent / "docs" / "python_api.md"
SMALL = {
    "batch_size": 2, "group_size": 1, "max_new_tokens": 6, "steps": 1, "eval_prompts": 2, "max_prompt_tokens": 90,
    "temperature": 1.0, "top_p": 1.0, "loss": "reverse_kl",
}  # fmt: skip


@pytest.fixture
def small(folders, tmp_path, monkeypatch):
    """``small(**settings)``: settings of a run that takes no time."""
    monkeypatch.chdir(tmp_path)
    pair = {"student_model": str(folders["student"]), "teacher_model": str(folders["teacher"])}
    return lambda **more: TrainConfig(**{**pair, **SMALL, **more})


def test_a_run_returns_what_it_wrote(small):
    result = train(small(output_dir="run", steps=2))
    evaluations = read_evaluations(Path("run/completions.jsonl"))
    assert result == TrainResult(Path("run"), 2, evaluations[0], evaluations[-1])
    assert isinstance(result.before, Evaluation)
    assert (result.before.step, result.after.step) == (0, 2)
    assert (result.checkpoint / "model.safetensors").is_file()
    assert (result.stopped_by, result.exit_code) == (None, 0)


def test_nothing_held_out_means_no_evaluations(small):
    result = train(small(eval_prompts=0))
    assert (result.before, result.after) == (None, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp32 and bf16 on the processor")
def test_two_runs_of_different_precision_in_one_process(small):
    half, full = (train(small(dtype=dtype, output_dir=dtype)) for dtype in ("bf16", "fp32"))
    again = train(small(dtype="fp32", output_dir="again"))
    assert full.after == again.after != half.after


def test_the_process_is_left_as_it_was(small):
    own = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    state = dict(AcceleratorState._shared_state), dict(PartialState._shared_state)
    transformers.utils.logging.set_verbosity_info()
    transformers.utils.logging.enable_progress_bar()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    try:
        train(small(dtype="fp32", output_dir="run"))
        with pytest.raises(UserError, match="--output_dir run: is not empty"):
            train(small(dtype="fp32", output_dir="run"))
        assert (AcceleratorState._shared_state, PartialState._shared_state) == state
        assert own.mixed_precision == "bf16"
        assert transformers.utils.logging.get_verbosity() == transformers.logging.INFO
        assert transformers.utils.logging.is_progress_bar_enabled()
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert torch.equal(torch.rand(3), expected)
    finally:
        transformers.utils.logging.set_verbosity_warning()


def test_a_failure_in_the_middle_gives_the_signals_back(small, monkeypatch):
    def failing(*_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr("local_distill.build.build", failing)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError, match="in the middle"):
        train(small())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_run_in_a_thread(small):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(small(output_dir="run"))))
    thread.start()
    thread.join()
    assert [result.folder for result in results] == [Path("run")]


def test_a_signal_is_in_the_result(small, monkeypatch):
    def stopped(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr("local_distill.build.distil", stopped)
    result = train(small(output_dir="run"))
    assert (result.stopped_by, result.exit_code, result.steps) == (signal.SIGTERM, 143, 0)


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, local_distill; assert 'train' in dir(local_distill);"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules]);"
        "from local_distill import TrainConfig; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(local_distill, name) is not None for name in local_distill.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        local_distill.nonsense  # noqa: B018


def test_the_example_of_the_page_runs(folders, tmp_path, monkeypatch, capsys):
    """The page's first example as it stands, with the demo's model folders under their names and no long run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-99m-pruned").symlink_to(folders["student"])
    (tmp_path / "models" / "smollm2-135m-instruct").symlink_to(folders["teacher"])
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1]
    exec(compile(example, str(PAGE), "exec"), {})
    assert "nats per token" in capsys.readouterr().out
