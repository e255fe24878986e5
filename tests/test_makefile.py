"""What the Makefile says can be made from a clean checkout is made from files that are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_names_files_that_are_there(target, tmp_path):
    folders = [f"{name}={tmp_path / name.lower()}" for name in ("VENV", "MODELS", "VLLM")]
    asked = subprocess.run(
        ["make", "--dry-run", *folders, target], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert asked.returncode == 0, asked.stderr
