"""The method on one page: it stands alone, and it has the package's numbers, its samples included."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import GenerationConfig

from local_distill import TrainConfig, train
from local_distill.process.seeding import rollout_stream
from local_distill.rollouts.hf import HFRollouts
from tests.tiny_models import llama_config, make_tokenizer, save_model

PAGE = Path(__file__).parent.parent / "examples" / "minimal.py"
PROMPTS, GROUP, NEW_TOKENS, STEPS, RATE, SEED = 3, 2, 10, 2, 1e-2, 7
TOLERANCE = 1e-4
"""Share of the weights' way in two steps. Most of it is Adam's, which divides the rounding of a tiny gradient too."""


@pytest.fixture
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A student and a teacher that chat. What one head has beyond the other is padding; the teacher stops on more."""
    root, tokenizer = tmp_path_factory.mktemp("pair"), make_tokenizer(chat=True)
    student, teacher = llama_config(vocab_size=320, layers=1), llama_config()
    names = {"student": student, "teacher": teacher}
    folders = [save_model(root / name, config, tokenizer, seed=i) for i, (name, config) in enumerate(names.items(), 1)]
    GenerationConfig(eos_token_id=list(range(20, 40))).save_pretrained(folders[1])  # so many that completions do end
    return folders


@pytest.fixture(scope="module", params=["auto", "policy_gradient"])
def package(request, pair, tmp_path_factory):
    """Two steps of the package: what was sampled, the losses, the weights."""
    student, teacher = pair
    config = TrainConfig(
        student_model=str(student), teacher_model=str(teacher), loss=request.param, dtype="fp32", seed=SEED,
        batch_size=PROMPTS, group_size=GROUP, max_new_tokens=NEW_TOKENS, max_prompt_tokens=90, steps=STEPS,
        learning_rate=RATE, eval_prompts=0, output_dir=str(tmp_path_factory.mktemp("run") / "run"),
    )  # fmt: skip
    sampled, sample = [], HFRollouts.sample

    def kept(self, *args, **kwargs):
        rollouts = sample(self, *args, **kwargs)
        if rollouts[0].prompt.text:  # not of the checks at the start
            sampled.append(rollouts)
        return rollouts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HFRollouts, "sample", kept)
        run = train(config)
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return SimpleNamespace(
        loss="reverse_kl" if request.param == "auto" else request.param,
        rollouts=sampled,
        losses=[record["loss"] for record in records if "loss" in record],
        before=load_file(student / "model.safetensors"),
        after=load_file(run.checkpoint / "model.safetensors"),
    )


@pytest.fixture
def run(minimal, pair, package, monkeypatch, capsys):
    """The page's own command, with the package's settings, prompts and random numbers."""
    streams = [
        torch.stack([rollout_stream(NEW_TOKENS, SEED, step, position, member) for member in range(GROUP)])
        for step in range(STEPS)
        for position in range(PROMPTS)
    ]
    texts = [rollout.prompt.text for rollouts in package.rollouts for rollout in rollouts[::GROUP]]
    for name, value in {"PROMPTS": texts, "BATCH": PROMPTS, "GROUP": GROUP, "NEW_TOKENS": NEW_TOKENS}.items():
        monkeypatch.setattr(minimal, name, value)

    def go():
        left, done = iter(streams), SimpleNamespace(rollouts=[], losses=[], divergences=[], tokens=[])
        sample, update = minimal.sample, minimal.update

        def sample_by_the_streams(student, prompt, draws, *rest):
            assert draws.shape == (GROUP, NEW_TOKENS)
            return sample(student, prompt, next(left), *rest)

        def remember(student, teacher, adam, rollouts, *rest):
            loss, divergence, tokens = update(student, teacher, adam, rollouts, *rest)
            done.student = student
            done.rollouts.append(rollouts)
            done.losses.append(loss)
            done.divergences.append(divergence)
            done.tokens.append(tokens)
            return loss, divergence, tokens

        monkeypatch.setattr(minimal, "sample", sample_by_the_streams)
        monkeypatch.setattr(minimal, "update", remember)
        student, teacher = map(str, pair)
        words = ["--student", student, "--teacher", teacher, "--loss", package.loss, "--steps", str(STEPS)]
        monkeypatch.setattr(sys, "argv", ["minimal.py", *words, "--learning_rate", str(RATE)])
        minimal.main()
        done.printed = capsys.readouterr().out.splitlines()
        return done

    return go


def off(done, package):
    """How far from the package's the weights are, as a share of the way that those have gone."""
    after = {name: value.detach() for name, value in done.student.named_parameters()}
    assert after.keys() == package.after.keys() == package.before.keys()
    apart, gone = (
        torch.cat([(one[name] - package.after[name]).flatten() for name in package.after]).norm()
        for one in (after, package.before)
    )
    return float(apart / gone)


def test_it_samples_what_the_package_samples(run, package):
    done = run()
    for ours, theirs in zip(done.rollouts, package.rollouts, strict=True):
        flat = [
            (prompt.tolist(), tokens[counts].tolist())
            for prompt, completion, mask in ours
            for tokens, counts in zip(completion, mask, strict=True)
        ]
        assert flat == [(list(rollout.prompt.ids), rollout.completion.tolist()) for rollout in theirs]
    finishes = {rollout.finish for rollouts in package.rollouts for rollout in rollouts}
    assert finishes == {"stop", "length"}, "both ways of ending are among them"


def test_it_has_the_package_s_losses_tokens_and_weights_after_two_steps(run, package):
    done = run()
    assert done.losses == pytest.approx(package.losses, rel=1e-5)
    assert done.tokens == [sum(len(r.completion) for r in rollouts) for rollouts in package.rollouts]
    assert off(done, package) < TOLERANCE


def wrong_sign(minimal):
    for name in ("reverse_kl", "policy_gradient"):
        loss = getattr(minimal, name)
        setattr(minimal, name, lambda *args, loss=loss: -loss(*args))


def shifted_by_one(minimal):
    def logprobs(model, prompt, completion, vocab):
        ids = torch.cat([prompt.expand(GROUP, -1), completion], 1)
        return model(input_ids=ids).logits[:, len(prompt) :, :vocab].log_softmax(-1)

    minimal.logprobs = logprobs


def prompts_train(minimal):
    """All of a prompt behind its first token is taken for a part of the completion."""
    update = minimal.update

    def with_prompts(student, teacher, adam, rollouts, *rest):
        longer = [
            (
                prompt[:1],
                torch.cat([prompt[1:].expand(GROUP, -1), y], 1),
                F.pad(counts, (len(prompt) - 1, 0), value=True),
            )
            for prompt, y, counts in rollouts
        ]
        return update(student, teacher, adam, longer, *rest)

    minimal.update = with_prompts


def what_follows_the_stop_trains(minimal):
    sample = minimal.sample

    def uncut(*args):
        completion, counts = sample(*args)
        return completion, torch.ones_like(counts)

    minimal.sample = uncut


@pytest.mark.parametrize("mistake", [wrong_sign, shifted_by_one, prompts_train, what_follows_the_stop_trains])
def test_a_mistake_would_be_seen(run, package, minimal, mistake):
    mistake(minimal)
    done = run()
    assert done.losses[0] != pytest.approx(package.losses[0], rel=1e-3)
    assert off(done, package) > 0.1


def test_a_line_a_step_has_the_exact_divergence_whatever_is_minimised(run, package):
    done = run()
    if package.loss == "reverse_kl":
        assert done.divergences == pytest.approx(done.losses, rel=1e-5)
    assert min(done.divergences) > 0
    numbers = zip(done.printed, done.divergences, done.losses, done.tokens, strict=True)
    for i, (line, divergence, loss, tokens) in enumerate(numbers, 1):
        assert line.startswith(f"step   {i}  reverse KL {divergence:.3f}  loss {loss:.3f}  {tokens} tokens  ")


def test_it_fits_a_page_and_needs_torch_and_transformers_alone():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    imported = re.findall(r"^ *(?:import|from) (\w+)", text, re.M)
    assert set(imported) == {"argparse", "torch", "transformers"}


def test_a_base_model_goes_on_with_the_text_itself(minimal, folders, monkeypatch, capsys):
    asked, sample = [], minimal.sample

    def watched(student, prompt, *rest):
        asked.append(prompt.tolist())
        return sample(student, prompt, *rest)

    monkeypatch.setattr(minimal, "sample", watched)
    monkeypatch.setattr(minimal, "NEW_TOKENS", 3)
    pair = ["--student", str(folders["student"]), "--teacher", str(folders["teacher"])]
    monkeypatch.setattr(sys, "argv", ["minimal.py", *pair, "--steps", "1"])
    minimal.main()
    assert capsys.readouterr().out.startswith("step   1  reverse KL")
    assert asked == [make_tokenizer()(text).input_ids for text in minimal.PROMPTS[: minimal.BATCH]]


def test_a_teacher_with_other_tokens_is_refused_before_any_weights_are_loaded(minimal, folders, monkeypatch, capsys):
    pair = ["--student", str(folders["student"]), "--teacher", str(folders["other_tokenizer"])]
    monkeypatch.setattr(sys, "argv", ["minimal.py", *pair])
    monkeypatch.delattr(minimal.AutoModelForCausalLM, "from_pretrained")
    with pytest.raises(SystemExit):
        minimal.main()
    assert "minimal.py: error: the tokenizers differ" in capsys.readouterr().err
