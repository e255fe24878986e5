"""Saving is tried before anything is loaded."""

import copy

import pytest

from local_distill.errors import UserError
from local_distill.models.adapters import LoraSettings
from local_distill.models.files import open_model
from local_distill.training.dry_save import check_saving

LORA = LoraSettings(rank=4, alpha=8, dropout=0.0, target_modules="all-linear")


BROKEN = {
    "generation settings": lambda _, generation: setattr(generation, "temperature", 0.5),  # without do_sample
    "configuration": lambda files, _: setattr(files.config, "temperature", 0.5),  # which has no place there
    "tokenizer": lambda files, _: files.tokenizer.init_kwargs.update(special={object()}),  # no JSON
}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_what_can_be_saved_passes_and_leaves_nothing(folders, tmp_path, adapter):
    files = open_model("--student_model", str(folders["gpt2"]), trust_remote_code=False)
    check_saving(files, adapter, files.generation, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_saved_is_refused_in_one_line(folders, tmp_path, break_it):
    files = open_model("--student_model", str(folders["student"]), trust_remote_code=False)
    generation = copy.deepcopy(files.generation)
    break_it(files, generation)
    with pytest.raises(UserError) as caught:
        check_saving(files, None, generation, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"--student_model {folders['student']}: can be read but not saved (")
    assert message.endswith("; mend its configuration, its tokenizer or its generation_config.json")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_is_named(folders, tmp_path):
    files = open_model("--student_model", str(folders["student"]), trust_remote_code=False)
    with pytest.raises(UserError, match=f"--output_dir {tmp_path}/gone: cannot be written"):
        check_saving(files, None, files.generation, tmp_path / "gone")
