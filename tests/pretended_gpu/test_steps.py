"""What training does on a GPU alone, or with models that are held in other ways: beside the runs in tests/gpu."""

import functools

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import local_distill.teachers.local
from local_distill.batch import TeacherView
from local_distill.head.sampling import NucleusSampling
from local_distill.losses.registry import make_loss
from local_distill.losses.sampler_mismatch import SamplerMismatch
from local_distill.models.files import ModelFiles
from local_distill.models.scorer import TokenScorer
from local_distill.teachers.local import LocalTeacher, TopTokensTeacher, WholeDistributionTeacher
from local_distill.training.batching import MicroBatches, collate
from local_distill.training.device_memory import SmallerMicroBatches
from local_distill.training.learner import Learner
from local_distill.training.optimizer import make_updates
from tests.launching import assert_same_numbers, metrics
from tests.pretended_gpu.device import missing, pretended_gpu
from tests.serving.protocol_server import serving
from tests.tiny_models import llama_config, make_model, make_tokenizer
from tests.training.test_learner import ROLLOUTS

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
V, K = 300, 5
LOSSES = [
    *[{"loss": name} for name in ("policy_gradient", "importance_sampling", "ppo")],
    *[
        {"loss": name, "top_k": k, "top_k_support": whose}
        for name in ("reverse_kl", "forward_kl", "jsd")
        for k, whose in ((None, "teacher"), (K, "teacher"), (K, "student"))
    ],
]
SETTINGS = {
    "kl_coef": 0.5, "kl_discount": 0.9, "ratio_cap": 10.0, "ppo_clip": 0.2, "jsd_beta": 0.3, "top_k": None,
    "top_k_support": "teacher", "mismatch": SamplerMismatch(NucleusSampling(0.8, 0.9).logprobs_of),
}  # fmt: skip
RUN = [
    "--steps", "2", "--batch_size", "2", "--group_size", "2", "--max_new_tokens", "6", "--max_prompt_tokens", "90",
    "--save_every", "1", "--learning_rate", "1e-3", "--eval_prompts", "2", "--eval_every", "2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _gpu():
    with pretended_gpu():
        yield


def updated(loss, cpu):
    """Two steps of two updates: their metrics, and the weights after them."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=cpu)
    device = accelerator.device
    assert device.type == ("cpu" if cpu else "cuda")
    student, judge = (TokenScorer(make_model(llama_config(), seed).to(device), V) for seed in (1, 2))
    teachers = {
        TeacherView.tokens: LocalTeacher,
        TeacherView.top_tokens: functools.partial(TopTokensTeacher, k=K),
        TeacherView.whole_distribution: WholeDistributionTeacher,
    }
    teacher = teachers[loss.needs](judge, device)
    updates = make_updates(accelerator, student, weight_decay=0.1, max_grad_norm=1.0)
    smaller = SmallerMicroBatches(MicroBatches(), pytest.fail)
    learner = Learner(accelerator, updates, loss, lambda _: 1e-3, 0, smaller)
    substeps = [[teacher.score(collate(ROLLOUTS[i::2], 0))] for i in range(2)]
    found = [{"step": step, **learner.update(substeps, step)} for step in range(2)]
    return found, {name: p.detach().cpu() for name, p in student.named_parameters()}


@pytest.mark.parametrize("settings", LOSSES, ids=lambda s: " ".join(str(value) for value in s.values()))
def test_every_loss_takes_the_steps_that_it_takes_on_a_processor(settings):
    loss = make_loss(**{**SETTINGS, **settings})
    (here, ours), (there, theirs) = (updated(loss, cpu) for cpu in (False, True))
    assert_same_numbers(here, there)
    # Adam turns rounding in tiny gradients into steps of the learning rate, but not everywhere.
    assert max((ours[name] - theirs[name]).abs().mean() for name in ours) < 1e-5


@pytest.fixture
def run(run_command, tmp_path, folders):
    """``run(folder, *words)``: the metrics of a run there, and the tensors of its last checkpoint."""

    def ran(folder, *words):
        given = ["--student_model", folders["student"], *RUN, *words, "--output_dir", tmp_path / folder]
        code, out, err = run_command(given)
        assert code == 0, out + err
        files = sorted((tmp_path / folder / "step-2").rglob("*.safetensors"))
        return metrics(tmp_path / folder), {name: value for file in files for name, value in load_file(file).items()}

    return ran


def test_a_run_in_half_precision_resumes_with_its_loss_scale(run, folders):
    words = [
        "--teacher_model",
        folders["teacher"],
        "--dtype",
        "fp16",
        "--use_lora",
        "--lora_dropout",
        "0.1",
        "--kl_coef",
        "1e-3",
    ]
    numbers, whole = run("whole", *words)
    run("broken", *words, "--steps", "1")
    again, resumed = run("broken", *words, "--resume")
    assert again[-1] == numbers[-1]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole["scaler.growth_tracker"] == 2, "no update was skipped"


def test_a_teacher_behind_a_server(run, folders, monkeypatch):
    """What it says comes as numbers on the host, its top tokens as well."""
    model = AutoModelForCausalLM.from_pretrained(folders["teacher"]).eval()
    with serving(model, make_tokenizer()) as server:
        words = ["--teacher_url", server.url, "--loss", "jsd", "--top_k", K, "--dtype", "fp32"]
        here, _ = run("here", *words)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        there, _ = run("there", *words)
    assert_same_numbers(here, there)


class Packed(nn.Module):
    """A linear layer in 8 bits a weight, on the device since it was loaded, as bitsandbytes leaves one."""

    def __init__(self, linear, device):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().char().to(device), requires_grad=False)
        self.register_buffer("scale", scale.to(device))

    def forward(self, hidden):
        return hidden @ (self.weight * self.scale).to(hidden.dtype).T


def test_a_teacher_that_is_packed_as_it_is_loaded(run, folders, monkeypatch):
    load = ModelFiles.load

    def load_packed(files, dtype, quantization=None, device=None):
        model = load(files, dtype)
        if quantization is None:
            return model
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, child in list(part.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(part, name, Packed(child, device))
        return model.to(device)

    monkeypatch.setattr(ModelFiles, "load", load_packed)
    monkeypatch.setattr(local_distill.teachers.local, "check_quantization", lambda _: None)
    words = ["--teacher_model", folders["teacher"], "--loss", "reverse_kl", "--dtype", "fp32"]
    packed, _ = run("packed", *words, "--teacher_quantization", "8bit")
    whole, _ = run("whole", *words)
    for ours, theirs in zip(packed, whole, strict=True):
        key = "reverse_kl" if "reverse_kl" in ours else "eval/reverse_kl"
        assert ours[key] == pytest.approx(theirs[key], rel=0.1)
        assert ours[key] != theirs[key]
