"""What a run says of itself, and files that are damaged."""

import pytest

from local_distill.errors import UserError
from local_distill.runs.layout import ENVIRONMENT_FILE, SETTINGS_FILE, read_settings, read_starts


def test_a_run_that_left_no_word_has_no_settings_and_no_starts(tmp_path):
    assert read_settings(tmp_path) == {}
    assert read_starts(tmp_path) == []


@pytest.mark.parametrize("text", ["", "# nothing", "- a", "a: [", "a: 2026-99-99", b"\xff"])
def test_settings_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / SETTINGS_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"config\.yaml: .*; mend or remove it$"):
        read_settings(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[", b"\xff"])
def test_starts_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / ENVIRONMENT_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"environment\.json: .*; mend or remove it$"):
        read_starts(tmp_path)
