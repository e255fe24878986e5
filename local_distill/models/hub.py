"""Whether the model hub can be asked: seconds instead of the half minute in which its own client tries again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from local_distill.errors import UserError, one_line
from local_distill.models.loading_errors import local_folder
from local_distill.passwords import without_passwords
from local_distill.runs.whole_files import expanded

SECONDS = 3.0
"""How long the hub may take to say anything."""


def endpoint() -> str:
    """Return the address of the hub, or of the mirror that HF_ENDPOINT names, without passwords."""
    return without_passwords(constants.ENDPOINT)


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE forbids asking the hub."""
    return constants.is_offline_mode()


def why_unreachable(url: str = "", seconds: float = SECONDS) -> str:
    """Return why nothing at ``url``, by itself the hub, answers within so many seconds; empty where it does.

    Any answer counts, a refusal too. Proxies of the environment are used, as the hub's client does.
    """
    found: list[str] = []

    def ask() -> None:
        import httpx  # here: what only reads local folders need not wait for it

        try:
            httpx.head(url or constants.ENDPOINT, timeout=seconds)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, ImportError) as error:
            found.append(without_passwords(one_line(error)) or type(error).__name__)
        else:
            found.append("")

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit of its own
    asking.start()
    asking.join(seconds + 0.5)
    return found[0] if found else f"no answer in {seconds:g} s"


def check_findable(flag: str, path: str, kind: str = "model", files: Sequence[str] = ("config.json",)) -> None:
    """Raise UserError for a folder that is not there, or a hub id that is in no cache while the hub does not answer.

    kind: of the folder. files: one of them is in the cache where the id is.
    """
    path = expanded(path)
    if Path(path).is_file() or local_folder(flag, path, kind) or is_offline():  # offline, the library says so at once
        return
    try:
        if any(isinstance(try_to_load_from_cache(path, name), str) for name in files):
            return
    except HFValidationError:  # what is no id has a message of its own where it is opened
        return
    if reason := why_unreachable():
        raise UserError(
            f"{flag} {path}: no folder of that name is here, and {endpoint()} does not answer ({reason}); give a local "
            f"{kind} folder, or a mirror in HF_ENDPOINT; local-distill doctor looks further"
        )
