"""What of a completion is its answer, and when two texts are the same words."""

from __future__ import annotations

import re
import unicodedata

THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
GSM8K_MARK = "####"
_ANNOUNCED = re.compile(r"answer\b[*_\s]*(?:is\b|:)[*_\s:]*", re.IGNORECASE)
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(
    rf"[{_IDEOGRAPH}]|(?<![\w.])-?\d+(?:,\d{{3}})*(?:\.\d+)?|[^\W_{_IDEOGRAPH}]+(?:['’][^\W_{_IDEOGRAPH}]+)*"
)
_IN_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_NUMBER_ALONE = re.compile(r"[*\s$]*-?[*\s$]*\d[\d,]*(?:\.\d+)?[\s%*$.]*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are characters, not braces
_GAP = re.compile(r"\\,|\\ |~| ")
_THOUSANDS_APART = re.compile(rf"-?\d{{1,3}}(?:(?:{_GAP.pattern})\d{{3}})+")
_WORDS_ONLY = re.compile(r"(?:[^\W\d_]{3,}|no)(?:[ -][^\W\d_]+)*", re.IGNORECASE)


def said(completion: str) -> str:
    """A completion without its thoughts, of which the last may be unfinished, with plain minus and dollar signs."""
    after = completion.rpartition(THOUGHT_ENDS)[2]
    return after.partition(THOUGHT_BEGINS)[0].replace("−", "-").replace("\\$", "$")


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
        for brace in _BRACE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[start : brace.start()]
    return None


def after_mark(text: str) -> str:
    """What follows the last "####" on its line, as GSM8K writes answers; all of a text without one."""
    _, mark, after = text.rpartition(GSM8K_MARK)
    return after.strip().split("\n")[0] if mark and after.strip() else text


def marked_number(text: str) -> str:
    """A number alone after the last "####" on its line; all of any other text: Markdown has headings of that look."""
    after = after_mark(text)
    return re.sub(r"[*$\s]", "", after) if after is not text and _NUMBER_ALONE.fullmatch(after) else text


def without_gaps(boxed: str) -> str:
    """A number whose thousands stand apart, such as ``70\\,000``, in one piece; anything else as it is."""
    number = _THOUSANDS_APART.fullmatch(boxed.strip())
    return _GAP.sub("", boxed) if number else boxed


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
