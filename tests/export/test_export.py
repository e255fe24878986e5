"""What is exported is the model that was trained, whole or not there, with a card that says where it is from."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from local_distill.commands import main
from local_distill.config.train_config import parse_config
from local_distill.errors import UserError
from local_distill.export import export_model as exporting
from local_distill.export.origin import origin_of
from local_distill.models.trained import open_trained

IDS = torch.arange(1, 25)[None]


@pytest.fixture
def run(runs, tmp_path):
    """A copy of a run to export from: ``run("lora")``."""
    return lambda name: shutil.copytree(runs / name, tmp_path / name)


def exported(capsys, *words):
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    code = main(["export", *map(str, words)])
    return code, *capsys.readouterr()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", ["full", "lora"])
def test_in_fp32_the_export_is_the_trained_model(run, capsys, name):
    folder = run(name)
    trained = logits(open_trained("RUN", str(folder)).load(torch.float32))
    code, _, errors = exported(capsys, folder, "--dtype", "fp32")
    assert (code, errors) == (0, "")
    found = AutoModelForCausalLM.from_pretrained(folder / "export-step-2")
    torch.testing.assert_close(logits(found), trained, atol=1e-5, rtol=0.0)
    assert not list((folder / "export-step-2").glob("adapter*")), "merged: no adapter is left"
    for saved in [folder / "export-step-2", *([folder / "step-2"] if name == "full" else [])]:
        written = json.loads((saved / "config.json").read_text())
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"], "as transformers 4 spells it"
        assert json.loads((saved / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(("dtype", "precision"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_lower_precision_is_the_merged_weights_rounded_once(run, capsys, dtype, precision):
    folder = run("lora")
    assert exported(capsys, folder, "--dtype", dtype)[0] == 0
    weights = load_file(folder / "export-step-2" / "model.safetensors")
    merged = open_trained("RUN", str(folder)).load(torch.float32).merge_and_unload().state_dict()
    assert weights.keys() == merged.keys()
    assert all(torch.equal(weight, merged[name].to(precision)) for name, weight in weights.items())


def test_large_weights_are_cut_into_files(run, capsys):
    folder = run("full")
    assert exported(capsys, folder, "--max_shard_size", "20KB")[0] == 0
    assert len(list((folder / "export-step-2").glob("model-*.safetensors"))) > 1


def test_the_tokenizer_and_the_stop_tokens_come_with_it(run, capsys):
    folder = run("lora")
    generation = GenerationConfig.from_pretrained(folder / "step-2")
    generation.eos_token_id = [0, 7]
    generation.save_pretrained(folder / "step-2")
    assert exported(capsys, folder)[0] == 0
    found = folder / "export-step-2"
    assert GenerationConfig.from_pretrained(found).eos_token_id == [0, 7]
    text = "the quick brown fox"
    before = AutoTokenizer.from_pretrained(folder / "step-2")
    assert AutoTokenizer.from_pretrained(found).encode(text) == before.encode(text)


def test_another_step_and_another_place(run, capsys, tmp_path):
    folder = run("full")
    assert exported(capsys, folder, "--step", "1", "--dtype", "fp32", "--output_dir", tmp_path / "out")[0] == 0
    first = load_file(folder / "step-1" / "model.safetensors")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"], first["lm_head.weight"])
    assert "step 1" in (tmp_path / "out" / "README.md").read_text()
    assert "\n| 2 |" not in (tmp_path / "out" / "README.md").read_text(), "evaluations after it are of another model"


@pytest.mark.parametrize("starts", ["[]", "[{}]", '[{"packages": 1}]'])
def test_an_environment_that_names_no_packages_is_not_left_out_in_silence(run, starts):
    folder = run("full")
    (folder / "environment.json").write_text(starts)
    with pytest.raises(UserError, match=r"environment\.json: names no packages; mend or remove it"):
        origin_of(open_trained("RUN", str(folder)))


def test_the_card_tells_what_the_run_knows_and_leaves_gaps_for_the_owner(run, capsys, folders):
    folder = run("lora")
    before, *_, after = (json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines())
    environment = [{"packages": {"torch": "1.2.3-of-this-test"}}]
    (folder / "environment.json").write_text(json.dumps(environment))
    assert exported(capsys, folder)[0] == 0
    card = ModelCard.load(folder / "export-step-2" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "distillation" in card.data.tags
    assert card.data.base_model is None, "a local folder is no hub id"
    for each in (before, after):
        assert f"{each['reverse_kl']:#.3g}" in card.text
        assert f"± {each['standard_error']:.2g}" in card.text
    assert f"`{folders['teacher'].name}`" in card.text
    assert str(folders["teacher"].parent) not in str(card), "what the owner's folders are called is nobody's business"
    assert "torch 1.2.3-of-this-test" in card.text
    assert "--use_lora --lora_r=4" in card.text
    assert card.text.count("TODO (owner)") >= 3
    assert (folder / "export-step-2" / "curve.svg").read_text().startswith("<svg")
    again = card.text.split("```bash\nlocal-distill train ")[1].split("\n```")[0]
    assert parse_config(again.split()).lora_r == 4, "the command of the card can be given"


def test_the_card_names_hub_ids_for_the_hub(run, capsys):
    folder = run("full")
    settings = (folder / "config.yaml").read_text().splitlines()
    kept = [line for line in settings if not line.startswith(("student_model:", "dataset:"))]
    told = [*kept, "student_model: owner/base", "dataset: deepmath", "teacher_url: http://me:secret@host:8000"]
    (folder / "config.yaml").write_text("\n".join(told) + "\n")
    assert exported(capsys, folder)[0] == 0
    card = ModelCard.load(folder / "export-step-2" / "README.md")
    assert card.data.base_model == "owner/base"
    assert card.data.datasets == ["zwhe99/DeepMath-103K"]
    assert "secret" not in str(card)


def test_a_merge_that_is_wrong_is_not_exported(run, monkeypatch):
    folder = run("lora")
    base = open_trained("RUN", str(folder)).files
    monkeypatch.setattr(exporting.Trained, "merged", lambda _, dtype: base.load(dtype))
    with pytest.raises(UserError, match="does not give the log-probs of the trained model"):
        exporting.export(settings(folder, dtype="fp32"), say=print)
    assert not list(folder.glob("*export*")), "nothing is left"


def settings(folder, **more):
    from local_distill.export.export_config import ExportSettings

    return ExportSettings(run=str(folder), **more)


def test_a_model_that_was_not_trained_here_has_a_card_too(capsys, folders, tmp_path):
    assert exported(capsys, folders["student"], "--output_dir", tmp_path / "out")[0] == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "not trained here" in card.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_dir", "FULL"], "--output_dir .* is not empty"),
        (["--output_dir", "FULL/file"], "--output_dir .* a file, needs a folder"),
        (["--step", "9"], "step 9 is not there"),
        (["--gguf", "q8_0"], r"--gguf: needs llama.cpp's convert_hf_to_gguf.py.*git clone"),
        (["--gguf", "q8_0", "--gguf_converter", "no.py"], "--gguf_converter no.py: no such file"),
        (["--gguf_converter", "no.py"], "given without --gguf"),
        (["--private"], "given without --push_to_hub"),
        (["--push_to_hub", "a/b/c"], "--push_to_hub a/b/c: no name for the hub"),
        (["--dtype", "int4"], "--dtype: 'int4' given"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(runs, capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(exporting.Trained, "load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    code, _, errors = exported(capsys, runs / "full", *(word.replace("FULL", str(full)) for word in words))
    assert code == 2
    assert errors.count("\n") == 1
    assert re.search(message, errors), errors


CONVERTER = """\
import sys
from pathlib import Path
folder, _, kind, _, target = sys.argv[1:]
assert (Path(folder) / "model.safetensors").is_file()
Path(target).write_bytes({content})
if kind == "f16":
    sys.exit("Model FooForCausalLM is not supported")
"""


def test_the_converter_is_called_on_the_export(run, capsys, tmp_path, monkeypatch):
    folder = run("full")
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER.format(content=b"not GGUF"))
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    code, said, _ = exported(capsys, folder, "--gguf", "q8_0")
    assert code == 0
    assert (folder / "export-step-2" / "model-q8_0.gguf").read_bytes() == b"not GGUF"
    assert "model-q8_0.gguf, not compared:" in said, "what cannot be loaded again is said"
    code, _, errors = exported(capsys, folder, "--gguf", "f16", "--output_dir", tmp_path / "out")
    assert code == 2
    assert "Model FooForCausalLM is not supported" in errors
    assert not (tmp_path / "out").exists()


def test_help_is_quick():
    """It imports neither torch nor transformers."""
    program = (
        "import sys; from local_distill.commands import load; [load(n).parser() for n in ('chat', 'export')]; "
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr.strip() == ""
