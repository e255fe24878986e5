"""Models with what people's files really hold: they train, are saved at the first step, and open again."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from local_distill.models.trained import open_trained

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
