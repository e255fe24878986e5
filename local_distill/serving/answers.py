"""An answer is read for what it says, whatever its status: an error, or something else than was asked for."""

from __future__ import annotations

import json
import re
from typing import Any


class BadAnswerError(Exception):
    """An answer of success does not hold, token for token, what was asked for; the message says what it holds instead.

    status: the one of an error that is written in it; None where there is none.
    """

    def __init__(self, said: str, status: int | None = None) -> None:
        super().__init__(said)
        self.status = status


def read_reply(content: bytes, content_type: str) -> Any:
    """Return JSON as it is; other text where the server does not call it JSON.

    Raises BadAnswerError for an error, and for what only stands in for an answer: a web page, half of some JSON.
    """
    text = content.decode(errors="replace")
    if "json" in content_type:
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            what = f"what is not JSON: {text[:60]!r}" if text.strip() else "nothing"
            raise BadAnswerError(what) from None
        _check_no_error(answer)
        return answer
    if "html" in content_type or text.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
        raise BadAnswerError(f"a web page{f' ({title[1].strip()})' if title else ''}")
    return text


def message_of(content: bytes, otherwise: str) -> str:
    """Return a server's own words for its error, in whichever of the usual places they are."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return content.decode(errors="replace") or otherwise
    return _words(answer)


def member(name: str, answer: Any) -> Any:
    """Return what an answer has under a name. Raises BadAnswerError where it has nothing there."""
    if not isinstance(answer, dict) or answer.get(name) is None:
        raise BadAnswerError(f"{str(answer)[:60]!r}, which has no {name}")
    return answer[name]


def model_cards(answer: Any) -> list[dict[str, Any]]:
    """Return the models that an answer to ``/v1/models`` lists; none where it is another kind of answer."""
    cards = answer.get("data") if isinstance(answer, dict) else None
    return [card for card in cards if isinstance(card, dict) and "id" in card] if isinstance(cards, list) else []


def _check_no_error(answer: Any) -> None:
    if not isinstance(answer, dict) or not (answer.get("error") or answer.get("object") == "error"):
        return
    inside = answer["error"] if isinstance(answer.get("error"), dict) else answer
    codes = [str(inside.get(name)) for name in ("code", "status", "status_code")]
    status = next((int(code) for code in codes if code.isdecimal() and 400 <= int(code) < 600), None)
    raise BadAnswerError(f"an error ({_words(answer)})", status)


def _words(answer: Any) -> str:
    for place in ("error", "message", "detail"):
        if isinstance(answer, dict) and place in answer:
            answer = answer[place]
    return str(answer)
