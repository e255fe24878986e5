"""Fixtures that many tests share."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from contextlib import contextmanager

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # what the tests expect is a processor's, also where there are GPUs
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes with two threads each wait for each other

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.tiny_models import gpt2_config, llama_config, make_tokenizer, save_model

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """accelerate keeps one state for the whole process; each test gets its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny model folders by name: student, teacher, gpt2, chat (template and other end token), other_tokenizer."""
    root = tmp_path_factory.mktemp("models")
    plain, chat, other = make_tokenizer(), make_tokenizer(chat=True), make_tokenizer(vocab_size=280)
    return {
        "student": save_model(root / "student", llama_config(layers=1), plain, seed=1),
        "teacher": save_model(root / "teacher", llama_config(layers=2), plain, seed=2),
        "gpt2": save_model(root / "gpt2", gpt2_config(), plain, seed=3),
        "chat": save_model(root / "chat", llama_config(layers=1), chat, seed=4),
        "other_tokenizer": save_model(root / "other", llama_config(layers=1), other, seed=5),
    }


@pytest.fixture(scope="session")
def runs(folders, tmp_path_factory):
    """Two finished runs of two steps each, full and lora: of all weights, and of an adapter. To be read alone."""
    from local_distill.config.train_config import parse_config
    from local_distill.train_on_policy_local import train

    root = tmp_path_factory.mktemp("runs")
    common = [
        "--student_model", str(folders["student"]), "--teacher_model", str(folders["teacher"]), "--steps", "2",
        "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "6", "--max_prompt_tokens", "90",
        "--eval_prompts", "2", "--eval_every", "1", "--save_every", "1", "--learning_rate", "1e-2",
    ]  # fmt: skip
    for name, more in {"full": [], "lora": ["--use_lora", "--lora_r", "4"]}.items():
        train(parse_config([*common, *more, "--output_dir", str(root / name)]))
    return root


@contextmanager
def _stderr_of_a_process():
    """Logging and warnings go where a user would see them; under pytest, both would go elsewhere."""
    libraries = [logging.getLogger(name) for name in ("transformers", "huggingface_hub", "datasets", "accelerate")]
    handlers = [handler for each in libraries for handler in each.handlers if type(handler) is logging.StreamHandler]
    for handler in handlers:
        handler.stream = sys.stderr  # not setStream, which flushes what it had: an earlier test's, closed since
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # as Python does by itself
        warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}", file=sys.stderr)
        yield


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """The documented command in this process: ``run_command(argv) -> (exit code, stdout, stderr)``."""
    from local_distill.train_on_policy_local import main

    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(argv):
        capsys.readouterr()
        try:
            with _stderr_of_a_process():
                code = main([str(word) for word in argv])
        except SystemExit as ended:  # --help
            code = ended.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def no_wandb_account(tmp_path, monkeypatch):
    """A machine on which nobody has logged in to wandb."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # it reads the environment once
    yield
    wandb.teardown()
