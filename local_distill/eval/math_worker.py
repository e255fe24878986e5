"""The process in which answers are compared as mathematics; it may hang or die without harm to the evaluation.

A model's answer is untrusted: ``9^{9^{9^9}}`` alone can take all time and memory there is. Here both are bounded, and
math-verify has the main thread that its own time limits need.

    JSON lines in and out: {"reference", "answer"} → {"readable", "extracted", "correct"}
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import sys
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

MOST_MEMORY = 4 * 2**30  # bytes
SECONDS = 5
"""Of each parse and each comparison."""
LATEX_FIRST = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def main() -> None:
    """Answer until the other side closes."""
    logging.disable()
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit; the time limit still holds there
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        print(json.dumps(compare(**json.loads(line))), flush=True)


def compare(reference: str, answer: str) -> dict[str, Any]:
    """Compare an answer with its reference, LaTeX or plain.

    answer: text in which the last boxed, announced or other expression is taken.
    """
    expected, found = _parsed(reference), _parsed(answer)
    return {
        "readable": any(not isinstance(each, str) for each in expected),
        "extracted": next((each for each in found if isinstance(each, str)), ""),
        "correct": bool(expected) and bool(found) and verify(expected, found, timeout_seconds=SECONDS),
    }


def _parsed(text: str) -> list[Any]:
    return parse(text, LATEX_FIRST, parsing_timeout=SECONDS)


if __name__ == "__main__":
    main()
