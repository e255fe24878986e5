"""Passwords and keys of URLs are shown to nobody: not in a message, a file or a tracker."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_CREDENTIALS = re.compile(r"(?<=://)[^/\s?#]*@")  # up to the last @: a password may hold one
_SECRET_PARAMETER = re.compile(r"(?i)([?&][^=&\s]*(?:key|token|secret|password|signature)[^=&\s]*=)[^&\s#]+")
_MASK = "***"


def without_passwords(text: str) -> str:
    """Return the text with the passwords and keys of its URLs replaced: https://***@host/?api_key=***."""
    return _SECRET_PARAMETER.sub(rf"\g<1>{_MASK}", _CREDENTIALS.sub(f"{_MASK}@", text))


def command_line(words: Sequence[str]) -> str:
    """Return the words as a shell takes them, without the passwords and keys of URLs."""
    return shlex.join(map(without_passwords, words))
