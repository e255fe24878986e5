"""What the files of two models say, without their weights: how long their contexts are, whether they think first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from local_distill.models.file_settings import context_length_of
from local_distill.models.files import open_config
from local_distill.prompts.rendering import THINKING
from local_distill.runs.whole_files import expanded

_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")


def shortest_context(settings: Mapping[str, Any]) -> int | None:
    """Return the tokens that the shorter context of the two holds; None where neither says. Raises UserError."""
    found = []
    for flag in ("student_model", "teacher_model"):
        if settings.get(flag):
            found.append(context_length_of(open_config(f"--{flag}", settings[flag], False)))
    return min((length for length in found if length), default=None)


def thinks_unless_told(path: str) -> bool:
    """Tell whether a model's chat template has the switch; False as well where it has no template that is found."""
    return any(THINKING in _text(expanded(path), name) for name in _TEMPLATES)


def _text(path: str, name: str) -> str:
    try:
        file = cached_file(path, name, _raise_exceptions_for_gated_repo=False,
                           _raise_exceptions_for_missing_entries=False,
                           _raise_exceptions_for_connection_errors=False)  # fmt: skip
        if file is None:
            return ""
        text = Path(file).read_text(encoding="utf-8")
        return text if name.endswith(".jinja") else json.dumps(json.loads(text).get("chat_template", ""))
    except (OSError, ValueError):  # a file of somebody else's; opening the tokenizer says what is wrong with it
        return ""
