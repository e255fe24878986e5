"""Adapters: what is frozen, what the same seed draws, and which ones that were trained elsewhere are let in."""

import json
import warnings

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from local_distill.errors import UserError
from local_distill.models.adapters import LoraSettings, add_lora, load_lora, open_adapter
from local_distill.models.files import causal_lm, open_model
from tests.tiny_models import gpt2_config, llama_config, make_model

IDS = torch.arange(1, 20)[None]
LORA = LoraSettings(rank=4, alpha=8, dropout=0.0, target_modules="all-linear")


def opened(folder):
    return open_model("--student_model", str(folder), trust_remote_code=False)


def trainable(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["student", "gpt2"])
def test_the_same_seed_draws_the_same_adapter_whatever_came_before(folders, name):
    files = opened(folders[name])
    adapters = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        torch.manual_seed(noise)
        torch.rand(noise)
        adapters.append(trainable(add_lora(files.load(torch.bfloat16), LORA, seed)))
    first, same, other = adapters
    assert first.keys() == same.keys() == other.keys()
    assert all("lora_" in name for name in first)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_an_adapter_is_in_float32_over_a_frozen_base_in_bf16_and_begins_as_nothing(folders):
    files = opened(folders["student"])
    base = files.load(torch.bfloat16)
    expected = base(IDS).logits
    model = add_lora(base, LORA, seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert causal_lm(model) is base
    torch.testing.assert_close(model(IDS).logits, expected)


def test_settings_of_an_adapter_are_taken(folders):
    model = add_lora(opened(folders["student"]).load(torch.float32), LoraSettings(3, 12, 0.25, "q_proj, up_proj"), 0)
    parts = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(model)}
    assert parts == {"q_proj", "up_proj"}
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 12, 0.25)
    assert all(3 in p.shape for p in trainable(model).values())


def test_an_adapter_comes_back_from_its_folder_to_be_trained_on(folders, tmp_path):
    files = opened(folders["gpt2"])
    model = add_lora(files.load(torch.bfloat16), LoraSettings(4, 8, 0.5, "all-linear"), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    again = load_lora(files.load(torch.bfloat16), tmp_path / "adapter")
    before, after = trainable(model), trainable(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {p.dtype for p in after.values()} == {torch.float32}
    for each in (model, again):
        assert not any(module.training for module in each.modules()), "or its dropout would be on"


def test_adapters_are_made_without_a_word(folders, recwarn):
    """peft and transformers warn of each other's ways, at every model; that would be on every terminal."""
    warnings.simplefilter("always")
    add_lora(opened(folders["gpt2"]).load(torch.float32), LORA, seed=0)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("names", "unknown"),
    [("nope", "nope"), ("q_proj,nope,v_prj", "nope, v_prj"), ("lm_head", "lm_head"), (" , ", "an empty name")],
)
def test_modules_that_cannot_have_an_adapter(folders, names, unknown):
    with pytest.raises(UserError) as caught:
        add_lora(opened(folders["student"]).skeleton(), LoraSettings(4, 8, 0.0, names), seed=0)
    assert str(caught.value) == (
        f"--lora_target_modules {names}: {unknown} is no linear layer inside this model, which has down_proj, "
        "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; choose from these, or all-linear"
    )


def test_the_output_head_has_no_adapter(folders):
    for name in ("student", "gpt2"):
        model = add_lora(opened(folders[name]).load(torch.float32), LORA, seed=0)
        assert isinstance(model, PeftModel)
        assert type(causal_lm(model).get_output_embeddings()) is torch.nn.Linear


# --- adapters that were trained before -----------------------------------------------------------


def save_adapter(folder, config, dtype=torch.float32, **settings):
    """An adapter on a model of this configuration, after some training; returns it and what it is saved as."""
    settings = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.25, "target_modules": "all-linear", **settings}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = get_peft_model(make_model(config, 1), LoraConfig(**settings))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype).float()
        model.save_pretrained(folder)
    weights = {name: value.to(dtype) for name, value in load_file(folder / "adapter_model.safetensors").items()}
    save_file(weights, folder / "adapter_model.safetensors")
    return model.eval()


@pytest.fixture
def adapter(tmp_path):
    """A folder with an adapter for the one-layer student."""
    save_adapter(tmp_path / "adapter", llama_config(layers=1))
    return tmp_path / "adapter"


def change_settings(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [llama_config(layers=1), gpt2_config()], ids=["llama", "gpt2"])
def test_an_adapter_that_was_trained_before_is_trained_on(tmp_path, config, dtype, task):
    trained = save_adapter(tmp_path / "adapter", config, dtype, task_type=task)
    files = open_adapter(str(tmp_path / "adapter"))
    base = make_model(config, 1).to(torch.bfloat16)
    model = files.load(base)
    assert causal_lm(model) is base
    before, after = trainable(trained), trainable(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())
    assert (files.rank, model.peft_config["default"].lora_dropout) == (4, 0.25)
    assert files.number_of_parameters() == sum(p.numel() for p in after.values())
    torch.testing.assert_close(files.put_on(make_model(config, 1), seed=7)(IDS).logits, trained(IDS).logits)
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == files.shapes.keys()


def test_parameters_of_a_new_adapter_are_counted_without_memory(folders):
    files = opened(folders["gpt2"])
    assert LORA.number_of_parameters(files.skeleton()) == sum(
        p.numel() for p in trainable(LORA.put_on(files.load(torch.float32), seed=0)).values()
    )


def test_only_settings_and_weights_are_downloaded(adapter, monkeypatch):
    asked = {}

    def snapshot(name, **options):
        asked.update(options, name=name)
        return str(adapter)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert open_adapter("somebody/adapter").folder == adapter
    assert asked == {
        "name": "somebody/adapter", "allow_patterns": ["adapter_config.json", "adapter_model.safetensors"],
    }  # fmt: skip


def mistake(adapter, says):
    with pytest.raises(UserError) as caught:
        open_adapter(str(adapter)).load(make_model(llama_config(layers=1), 1))
    message = str(caught.value)
    assert message.startswith(f"--init_adapter {adapter}: ")
    assert "\n" not in message
    assert says in message
    assert "; " in message, "what to do"
    return message


def test_folders_that_hold_no_adapter(folders, tmp_path):
    mistake(tmp_path, "not an adapter, it has no adapter_config.json")
    mistake(folders["student"], "a whole model, needs an adapter on one")
    mistake(tmp_path / "nowhere", "no such folder; give a local adapter folder or a hub id")
    (tmp_path / "file").write_text("")
    mistake(tmp_path / "file", "a file, needs an adapter folder; give one, or a hub id")
    mistake("nobody/nothing", "cannot be loaded")


def test_pickles_are_not_read(adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    mistake(adapter, "no adapter_model.safetensors in it; weights in another format, such as adapter_model.bin, are")


@pytest.mark.parametrize("left", [0, 5, 3000])
def test_weights_that_are_cut_short(adapter, left):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    mistake(adapter, "adapter_model.safetensors is damaged or cut short")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": "LORA", "r": "many"}'])
def test_settings_that_cannot_be_read(adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    mistake(adapter, "cannot be loaded")


def test_adapters_of_another_kind(tmp_path):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(make_model(llama_config(layers=1)), config).save_pretrained(tmp_path)
    mistake(tmp_path, "an adapter of the kind PREFIX_TUNING, needs LORA")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": r".*\.q_proj|.*head"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["low rank", "by a pattern", "whole"],
)
def test_adapters_on_the_head(tmp_path, settings):
    save_adapter(tmp_path, llama_config(layers=1), **settings)
    mistake(tmp_path, "changes the output head")


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"]}, {"bias": "all"}, {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [1, 2]}, {"layer_replication": [[0, 1], [0, 1]]},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_adapters_that_change_more_than_they_add(adapter, settings):
    change_settings(adapter, **settings)
    message = mistake(adapter, f"sets {next(iter(settings))} to")
    assert "merge" in message


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (gpt2_config(), "does not fit --student_model (Target modules"),
        (llama_config(layers=1, hidden_size=64), "does not fit --student_model (size mismatch for "),
        (llama_config(layers=2), "weights have no place in it, such as base_model.model.model.layers.1."),
    ],
    ids=["other modules", "another width", "more layers"],
)
def test_an_adapter_of_another_base(tmp_path, config, says):
    save_adapter(tmp_path, config, base_model_name_or_path="org/base")
    change_settings(tmp_path, base_model_name_or_path="org/base")
    assert "this adapter, made for org/base, does not fit" in mistake(tmp_path, says)


def test_an_adapter_of_fewer_layers(tmp_path):
    save_adapter(tmp_path / "adapter", llama_config(layers=1), target_modules=["q_proj", "v_proj"])
    with pytest.raises(UserError, match=r"4 weights are missing, such as base_model\.model\.model\.layers\.1\."):
        open_adapter(str(tmp_path / "adapter")).load(make_model(llama_config(layers=2), 1))


@pytest.mark.parametrize("lost", [True, False])
def test_every_weight_has_its_place_and_every_place_its_weight(adapter, lost):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "q_proj.lora_A" in name)
    if lost:
        del weights[name]
    else:
        weights["base_model.model.spare.lora_A.weight"] = torch.zeros(2)
    save_file(weights, file)
    mistake(adapter, "1 weights are missing" if lost else "1 weights have no place in it, such as")


def test_an_adapter_keeps_its_own_rank_pattern_and_scaling(tmp_path):
    settings = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 9}, "use_rslora": True}
    trained = save_adapter(tmp_path, llama_config(layers=1), **settings)
    model = open_adapter(str(tmp_path)).load(make_model(llama_config(layers=1), 1))
    torch.testing.assert_close(model(IDS).logits, trained(IDS).logits)
