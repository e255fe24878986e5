"""Models that come quantised: refused as students, and as teachers where what reads them is not installed."""

import json
import shlex
import shutil

import pytest
from transformers import AutoConfig

from local_distill.models.files import ModelFiles
from local_distill.models.quantization import check_readable

PACKED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True},
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
}
UNPACKED_AT_LOADING = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}
SMALL = "--steps 1 --batch_size 2 --max_new_tokens 4 --output_dir run"


@pytest.fixture
def packed(folders, tmp_path):
    """A model folder whose config.json says how it was quantised."""

    def make(settings):
        folder = tmp_path / "packed"
        shutil.copytree(folders["student"], folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
        return folder

    return make


@pytest.fixture
def refused(run_command, folders, monkeypatch):
    """The one line that the command ends with, before any weights."""

    def load(files, *_):
        raise AssertionError(f"weights of {files.path} were loaded")

    monkeypatch.setattr(ModelFiles, "load", load)

    def run(words):
        models = ["--student_model", folders["student"], "--teacher_model", folders["teacher"]]
        code, _, err = run_command([*models, *shlex.split(f"{words} {SMALL}")])
        assert (code, err.count("\n")) == (2, 1), err
        return err

    return run


@pytest.mark.parametrize(
    ("kind", "settings"), (PACKED | UNPACKED_AT_LOADING).items(), ids=[*PACKED, *UNPACKED_AT_LOADING]
)
def test_a_student_is_refused_whatever_is_installed(packed, refused, kind, settings):
    line = refused(f"--student_model {packed(settings)}")
    assert f"packed: its weights are quantised ({kind}), needs ordinary ones to be trained; give the model" in line
    assert ("dequantize=True" in line) is (kind in UNPACKED_AT_LOADING)


@pytest.mark.parametrize(("kind", "settings"), PACKED.items(), ids=PACKED)
def test_a_teacher_whose_package_is_missing_is_refused(packed, refused, kind, settings):
    line = refused(f"--teacher_model {packed(settings)}")
    assert f"its weights are quantised ({kind}), which cannot be read here (" in line
    assert "; install what that asks for, or give the model that it was made from" in line


@pytest.mark.parametrize("settings", UNPACKED_AT_LOADING.values(), ids=UNPACKED_AT_LOADING)
def test_a_teacher_that_is_unpacked_where_there_is_no_gpu_is_read(packed, settings):
    folder = packed(settings)
    check_readable("--teacher_model", str(folder), AutoConfig.from_pretrained(folder))


def test_what_is_quantised_is_neither_packed_again_nor_exported(packed, refused, capsys):
    from local_distill.commands import main

    folder = packed(UNPACKED_AT_LOADING["fp8"])
    line = refused(f"--teacher_model {folder} --teacher_quantization 4bit")
    assert line == "error: --teacher_quantization: given with a teacher that is quantised already (fp8); drop it\n"
    assert main(["export", str(folder), "--output_dir", "out"]) == 2
    assert "its weights are quantised (fp8), needs ordinary ones to be exported" in capsys.readouterr().err


def test_files_of_a_quantiser_tell_what_the_configuration_does_not(packed, refused):
    folder = packed(None)
    (folder / "quantize_config.json").write_text("{}")
    assert "its weights are quantised (quantize_config.json), needs" in refused(f"--student_model {folder}")
    assert "(quantize_config.json), which cannot be read here (its config.json" in refused(f"--teacher_model {folder}")
