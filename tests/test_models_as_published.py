"""Models with what people's files really hold: they train, are saved at the first step, and open again."""

import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GptOssConfig,
    MixtralConfig,
    PhimoeConfig,
)

from local_distill.commands import main as commands
from local_distill.models.trained import open_trained
from tests.tiny_models import llama_config, make_tokenizer, save_model

SMALL = [
    "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "4", "--max_prompt_tokens", "90", "--eval_prompts",
    "0", "--steps", "1",
]  # fmt: skip
FILES = {
    "sampling settings without sampling": ("generation_config.json", {"temperature": 0.9, "top_p": 0.6}),
    "settings that exclude each other": (
        "generation_config.json", {"num_return_sequences": 3, "early_stopping": True, "cache_implementation": "paged_x"}
    ),
    "attentions": ("config.json", {"output_attentions": True}),
    "hidden states, tuples": ("config.json", {"output_hidden_states": True, "return_dict": False}),
    "generation settings in the configuration": ("config.json", {"temperature": 0.6, "num_beams": 4}),
    "padding beyond the vocabulary": ("config.json", {"pad_token_id": 9999, "eos_token_id": [0, 9999]}),
}  # fmt: skip


@pytest.fixture
def copy_of(folders, tmp_path):
    """A copy of one of the model folders, with some of a file's settings replaced."""

    def make(name, file, settings, to="copy"):
        folder = tmp_path / to
        shutil.copytree(folders[name], folder)
        found = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(found | settings))
        return folder

    return make


@pytest.mark.parametrize(("file", "settings"), FILES.values(), ids=FILES)
def test_a_run_keeps_its_work_and_its_steps_open_again(run_command, folders, copy_of, file, settings):
    adapter = ["--use_lora", "--lora_r", "2"] if "top_p" in settings or "return_dict" in settings else []
    student = copy_of("student", file, settings)
    models = ["--student_model", student, "--teacher_model", folders["teacher"]]
    code, _, err = run_command([*models, *SMALL, *adapter, "--output_dir", "run"])
    assert (code, err) == (0, ""), err
    saved = GenerationConfig.from_pretrained("run/step-1")
    assert 0 in saved.eos_token_id
    trained = open_trained("RUN", "run").load(torch.float32)
    ids = torch.arange(8)[None]
    logits = trained(ids).logits
    assert logits.isfinite().all()
    if not adapter:
        assert torch.equal(AutoModelForCausalLM.from_pretrained("run/step-1")(ids).logits, logits)


@pytest.fixture
def with_added(tmp_path):
    """A model whose tokenizer has one special token more than ``rows`` of its head, or as many."""

    def make(name, token, rows, **config):
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens(token)
        return save_model(tmp_path / name, llama_config(rows, layers=1, **config), tokenizer, seed=len(name))

    return make


SOFT, PAD = {"additional_special_tokens": ["<image_soft_token>"]}, {"pad_token": "[PAD]"}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((SOFT, 300), (SOFT, 300)), ((PAD, 301), (SOFT, 300)), ((PAD, 300), (SOFT, 320)), ((PAD, 320), (SOFT, 320))],
    ids=["both behind the head", "one row more", "head as it was", "rows of padding"],
)
def test_a_token_that_one_model_lacks_is_said_and_never_sampled(run_command, with_added, ours, theirs):
    """Temperature 3 would draw any of 300 tokens; an id that a model has no row for would end the run."""
    models = ["--student_model", with_added("ours", *ours), "--teacher_model", with_added("theirs", *theirs)]
    hot = ["--temperature", "3", "--top_p", "1", "--loss", "reverse_kl", "--batch_size", "16"]
    code, out, err = run_command([*models, *SMALL, *hot, "--output_dir", "run"])
    assert (code, err) == (0, ""), err
    assert "tokens that not both models have are never sampled, and no prompt may have them: " in out
    saved = AutoTokenizer.from_pretrained("run/step-1")
    generation = GenerationConfig.from_pretrained("run/step-1")
    has_row = saved.pad_token_id is not None and saved.pad_token_id < ours[1]
    assert generation.pad_token_id == (saved.pad_token_id if has_row else 0)


def test_only_a_prompt_with_such_a_token_is_refused(run_command, with_added, tmp_path):
    models = ["--student_model", with_added("ours", SOFT, 300), "--teacher_model", with_added("theirs", SOFT, 300)]
    template = "{% for m in messages %}<image_soft_token>{{ m['content'] }}{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(models[1])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(models[1])
    (tmp_path / "p.txt").write_text("why\n")
    code, _, err = run_command([*models, *SMALL, "--prompts_file", "p.txt", "--output_dir", "run"])
    assert code == 2
    assert err == (
        "error: p.txt:1: the prompt has the token <image_soft_token> (id 300), and not both models have more than "
        "300 tokens; write it without that token\n"
    )


SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "bos_token_id": None,
    "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS = {"mixtral": MixtralConfig, "gpt_oss": GptOssConfig, "phimoe": PhimoeConfig}


@pytest.mark.parametrize("name", EXPERTS)
def test_an_adapter_on_a_mixture_of_experts_goes_the_whole_way(run_command, tmp_path, name):
    """Experts are packed into tensors of three dimensions, on which peft puts adapters for some models and none for
    others; a router may be a linear layer that returns more than products."""
    student = save_model(tmp_path / "student", EXPERTS[name](**SIZES), make_tokenizer(), seed=1)
    teacher = save_model(tmp_path / "teacher", llama_config(), make_tokenizer(), seed=2)
    models = ["--student_model", student, "--teacher_model", teacher, *SMALL, "--output_dir", "run", "--use_lora"]
    for steps in (["--steps", "1"], ["--steps", "2", "--resume"]):
        code, out, err = run_command([*models, "--lora_r", "4", "--learning_rate", "0.05", *steps])
        assert (code, err) == (0, ""), err
    assert ("the experts have no adapter" in out) is (name != "mixtral")
    trained = open_trained("RUN", "run")
    ids = torch.arange(1, 20)[None]
    model = trained.load(torch.float32)
    expected = model(ids).logits
    with model.disable_adapter():
        assert (model(ids).logits - expected).abs().max() > 0.1, "or nothing was trained"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert commands(["export", "run", "--output_dir", "out", "--dtype", "fp32"]) == 0
    exported = AutoModelForCausalLM.from_pretrained("out")
    torch.testing.assert_close(exported(ids).logits, expected, rtol=0, atol=1e-4)


def test_dropout_that_packed_experts_do_not_take_is_refused(run_command, tmp_path):
    student = save_model(tmp_path / "student", MixtralConfig(**SIZES), make_tokenizer(), seed=1)
    models = ["--student_model", student, "--teacher_model", student]
    code, _, err = run_command([*models, *SMALL, "--use_lora", "--lora_dropout", "0.1"])
    assert code == 2
    assert err.startswith("error: --use_lora: peft has no such adapter for this model (")
    assert "set --lora_dropout 0" in err
