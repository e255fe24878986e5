"""Models in one GGUF file: the same model, the same tokens, and a student that can be saved."""

import importlib.util
import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from local_distill.errors import UserError
from local_distill.models import gguf_files
from local_distill.models.adapters import LoraSettings
from local_distill.models.files import open_model
from local_distill.models.gguf_files import transformers_read_it_right
from local_distill.models.scorer import TokenScorer
from local_distill.models.start_checks import check_head
from local_distill.models.tokenization import check_same_tokens, shared_vocabulary
from local_distill.training.checkpoint import checkpoint_bytes
from tests.tiny_models import llama_config, make_model, make_tokenizer

pytestmark = pytest.mark.skipif(
    not transformers_read_it_right(), reason="the transformers that are installed read such files wrongly"
)
IDS = torch.arange(1, 20)[None]
CONTROL, NORMAL = 3, 1


def config(**overrides):
    """Rotary settings other than the family's own; widths that Q8_0's blocks of 32 divide."""
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    return llama_config(intermediate_size=64, rope_parameters=rope, rms_norm_eps=1e-5, **overrides)


def write_gguf(path, model, tokenizer, kind=None, left_out=()):
    """A Llama as llama.cpp's converter writes it. kind: of the matrices, float32 if None. left_out: these tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    settings = model.config
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(settings.rope_parameters["rope_theta"])
    writer.add_vocab_size(settings.vocab_size)
    write_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, settings.num_hidden_layers)
    tied = {"lm_head.weight"} if settings.tie_word_embeddings else set()
    for name, weight in model.state_dict().items():
        if name in {*left_out, *tied}:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = settings.num_attention_heads if "q_proj" in name else settings.num_key_value_heads
            weight = interleaved(weight, heads)
        array, theirs = weight.float().numpy(), names.get_name(name, try_suffixes=(".weight",))
        if kind and array.ndim == 2:
            writer.add_tensor(theirs, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tokenizer(writer, tokenizer):
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {token["content"] for token in backend["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def interleaved(weight, heads):
    """llama.cpp turns neighbouring numbers by one angle, transformers those that are half a head apart."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def opened(path, flag="--teacher_model"):
    return open_model(flag, str(path), trust_remote_code=False)


@pytest.fixture
def model():
    return make_model(config(), 1)


@pytest.fixture
def file(tmp_path, model):
    return write_gguf(tmp_path / "folder" / "model.gguf", model, make_tokenizer(chat=True))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_a_file_holds_the_whole_model(tmp_path, tied, folder):
    model, tokenizer = make_model(config(tie_word_embeddings=tied), 1), make_tokenizer(chat=True)
    file = write_gguf(tmp_path / "folder" / "model.gguf", model, tokenizer)
    files = opened(file.parent if folder else file)
    found = files.load(torch.float32)
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    assert not found.training
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    check_same_tokens(tokenizer, files.tokenizer)
    check_same_tokens(files.tokenizer, tokenizer)
    assert files.tokenizer.chat_template == tokenizer.chat_template
    assert shared_vocabulary(files.config, model.config, tokenizer) == 300
    assert files.context_length == 128
    check_head(TokenScorer(found, 300), "--teacher_model")


def test_the_precision_that_is_asked_for(file, model):
    found = opened(file).load(torch.bfloat16)
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
    assert torch.equal(found.lm_head.weight, model.lm_head.weight.bfloat16())


def test_packed_weights_are_unpacked(tmp_path, model):
    kind = gguf.GGMLQuantizationType.Q8_0
    found = opened(write_gguf(tmp_path / "m.gguf", model, make_tokenizer(), kind)).load(torch.float32)
    for name, weight in model.state_dict().items():
        error = (found.state_dict()[name] - weight).abs().max()
        assert error <= weight.abs().max() / 127, f"{name}: a number of 8 bits"
    assert (found.lm_head.weight != model.lm_head.weight).any()


@pytest.mark.parametrize("chat", [False, True])
def test_the_end_token_is_the_files(tmp_path, model, chat):
    tokenizer = make_tokenizer(chat=chat)
    files = opened(write_gguf(tmp_path / "m.gguf", model, tokenizer))
    assert tokenizer.eos_token_id == (2 if chat else 0)
    assert files.generation.eos_token_id == files.config.eos_token_id == tokenizer.eos_token_id
    assert files.generation.bos_token_id is files.config.bos_token_id is None


def test_no_end_token_is_made_up(tmp_path, model):
    """Llama's usual one would be another word here."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    files = opened(write_gguf(tmp_path / "m.gguf", model, tokenizer))
    assert files.generation.eos_token_id is files.config.eos_token_id is files.tokenizer.eos_token_id is None


@pytest.mark.parametrize("beside", ["the tokenizer of another model", "the whole of another model"])
def test_what_lies_beside_the_file_is_not_read(file, folders, beside):
    if beside.startswith("the whole"):
        shutil.copytree(folders["other_tokenizer"], file.parent, dirs_exist_ok=True)
    else:
        make_tokenizer(vocab_size=280).save_pretrained(file.parent)
        assert opened(file.parent).tokenizer.eos_token_id == 2
    files = opened(file)
    assert len(files.tokenizer) == 300
    assert files.tokenizer.chat_template
    assert files.generation.eos_token_id == files.tokenizer.eos_token_id == 2


def test_another_file_of_that_name_in_the_working_folder_is_not_read(file, model, tmp_path, monkeypatch):
    write_gguf(tmp_path / "elsewhere" / file.name, make_model(config(layers=1), 9), make_tokenizer(vocab_size=280))
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (file, file.parent):
        files = opened(path)
        assert torch.equal(files.load(torch.float32)(IDS).logits, model(IDS).logits)
        assert len(files.tokenizer) == 300
    monkeypatch.chdir(file.parent)
    files = opened(file.name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(files.load(torch.float32)(IDS).logits, model(IDS).logits)


def test_a_student_from_a_file_is_trained_saved_and_gone_on_with(file, tmp_path):
    files = opened(file, "--student_model")
    student = files.load(torch.float32)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    student.save_pretrained(tmp_path / "step-1")
    files.tokenizer.save_pretrained(tmp_path / "step-1")
    files.generation.save_pretrained(tmp_path / "step-1")
    assert "quant" not in (tmp_path / "step-1" / "config.json").read_text()
    again = files.with_weights_of(tmp_path / "step-1").load(torch.float32)
    as_a_folder = opened(tmp_path / "step-1")
    anyone = AutoModelForCausalLM.from_pretrained(tmp_path / "step-1")
    assert as_a_folder.gguf is None
    assert as_a_folder.tokenizer.get_vocab() == files.tokenizer.get_vocab()
    for model in (again, as_a_folder.load(torch.float32), anyone):
        assert torch.equal(model(IDS).logits, student(IDS).logits)


def test_a_student_from_a_file_can_have_an_adapter(file):
    files = opened(file, "--student_model")
    lora = LoraSettings(4, 8, 0.0, "all-linear")
    model = lora.put_on(files.load(torch.bfloat16), seed=0)
    number = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert checkpoint_bytes(files, lora) == 12 * number


def mistake(path, says):
    with pytest.raises(UserError) as caught:
        opened(path).load(torch.float32)
    message = str(caught.value)
    assert message.startswith(f"--teacher_model {path}: ") or message.startswith(f"--teacher_model {path}/")
    assert "\n" not in message
    assert "; " in message, "what to do"
    assert says in message


def test_several_files_in_a_folder(file):
    shutil.copy(file, file.with_name("other.gguf"))
    mistake(file.parent, "has several GGUF files, model.gguf, other.gguf; name one")
    assert opened(file).gguf == file


def test_a_part_of_a_split_file(file):
    mistake(file.rename(file.with_name("model-00001-of-00002.gguf")), "one part of a model in several files")


@pytest.mark.parametrize("left", [0, 2, 2000, 20_000, -1000])
def test_a_file_that_is_cut_short(file, left):
    file.write_bytes(file.read_bytes()[:left])
    mistake(file, "not a GGUF file" if 0 <= left < 4 else "download the model again")


def test_weights_that_are_not_in_the_file(tmp_path, model):
    name = "model.layers.1.mlp.up_proj.weight"
    file = write_gguf(tmp_path / "m.gguf", model, make_tokenizer(), left_out={name})
    mistake(file, f"1 are missing, such as {name}")


def test_weights_of_another_shape(tmp_path, model):
    wrong = torch.nn.Parameter(torch.zeros(32, 32))
    model.model.layers[0].mlp.down_proj.weight = wrong
    mistake(
        write_gguf(tmp_path / "m.gguf", model, make_tokenizer()), "1 have another shape, such as model.layers.0.mlp"
    )


def test_without_the_package(file, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else real(name))
    mistake(file, "needs the package gguf, which is not installed; pip install 'local-distill[gguf]'")


def test_with_transformers_that_read_it_wrongly(file, monkeypatch):
    monkeypatch.setattr(gguf_files, "OLDEST_TRANSFORMERS", (99, 1))
    mistake(file, f"needs transformers 99.1 or newer, {gguf_files.transformers.__version__} is installed")


def test_no_second_quantisation(file):
    with pytest.raises(UserError, match="a GGUF file cannot be quantised while it is loaded"):
        opened(file).load(torch.float32, BitsAndBytesConfig(load_in_4bit=True))


def test_another_architecture(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "mistery")
    writer.add_tensor("output.weight", torch.zeros(2, 2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    mistake(tmp_path / "m.gguf", "its configuration cannot be loaded")


def test_an_ordinary_folder_with_a_gguf_file_in_it_is_an_ordinary_folder(folders, tmp_path):
    folder = Path(shutil.copytree(folders["student"], tmp_path / "folder"))
    (folder / "other.gguf").write_bytes(b"not looked at")
    assert opened(folder).gguf is None
