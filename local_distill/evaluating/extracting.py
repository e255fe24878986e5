"""What of a completion is its answer, and when two texts are the same words."""

from __future__ import annotations

import re
import unicodedata

THOUGHT_ENDS = "</think>"
GSM8K_MARK = "####"
_ANNOUNCED = re.compile(r"answer\b[*_\s]*(?:is\b|:)[*_\s:]*", re.IGNORECASE)
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(
    rf"[{_IDEOGRAPH}]|(?<![\w.])-?\d+(?:,\d{{3}})*(?:\.\d+)?|[^\W_{_IDEOGRAPH}]+(?:['’][^\W_{_IDEOGRAPH}]+)*"
)
_IN_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_WORDS_ONLY = re.compile(r"(?:[^\W\d_]{3,}|no)(?:[ -][^\W\d_]+)*", re.IGNORECASE)


def said(completion: str) -> str:
    """A completion without the thoughts before it, with plain minus signs."""
    return completion.rpartition(THOUGHT_ENDS)[2].replace("−", "-")


def announced(completion: str) -> str:
    """What follows the last "answer:" or "answer is" on its line; without one, the last line with text."""
    text = said(completion)
    places = list(_ANNOUNCED.finditer(text))
    after = text[places[-1].end() :] if places else ""
    if after.strip():
        return after.strip().split("\n")[0].strip()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return lines[-1] if lines else ""


def last_boxed(text: str) -> str | None:
    """What is inside the last whole \\boxed{…}; None where there is none."""
    for start in reversed([found.end() for found in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place]
    return None


def after_mark(text: str) -> str:
    """What follows the last "####" on its line, as GSM8K writes answers; all of a text without one."""
    _, mark, after = text.rpartition(GSM8K_MARK)
    return after.strip().split("\n")[0] if mark and after.strip() else text


def words(text: str) -> str:
    """The text's words and numbers alone, in lower case, one space between: the form in which texts are compared.

    Punctuation and symbols are dropped, except a number's sign and decimal point; 1,000 is 1000. Each ideograph is a
    word. Compatibility forms (full width, ligatures) count as the plain ones (Unicode NFKC).
    """
    folded = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    return " ".join(re.sub("[,'’]", "", each) for each in _WORD.findall(folded))


def as_words(reference: str) -> str | None:
    """A reference that is words and no formula, such as ``\\text{Evelyn}`` or ``Yes``, without commands; else None.

    As a formula, Yes would be Y·e·s, and equal to any word of the same letters.
    """
    text = _IN_TEXT_COMMAND.sub(r"\1", reference).strip().strip("$.").strip()
    return text if _WORDS_ONLY.fullmatch(text) else None


def without_commands(text: str) -> str:
    """``\\text{…}`` and its like replaced by what they hold."""
    return _IN_TEXT_COMMAND.sub(r"\1", text)
