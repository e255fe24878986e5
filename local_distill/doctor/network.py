"""What is asked over the network, each with a short time-out: hub, ModelScope, servers; and the proxies on the way."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from urllib.request import getproxies

from local_distill.config.parsing import comma_separated
from local_distill.doctor.findings import BAD, OK, WARN, Finding
from local_distill.errors import UserError
from local_distill.models.hub import SECONDS, endpoint, is_offline, why_unreachable
from local_distill.monitor.trackers.choosing import check_wandb
from local_distill.packages import installed
from local_distill.passwords import without_passwords
from local_distill.serving.answers import model_cards
from local_distill.serving.client import HttpClient

MODELSCOPE = "https://modelscope.cn"
TRACKERS = ("wandb", "tensorboard", "trackio", "swanlab", "mlflow")


def hub() -> Finding:
    """Say whether the hub, or the mirror in HF_ENDPOINT, answers."""
    if is_offline():
        return Finding("hub", OK, "not asked, for HF_HUB_OFFLINE is set: models come from folders and the cache")
    if reason := why_unreachable():
        return Finding("hub", WARN, f"{endpoint()} does not answer ({reason})",
                       "give local folders, or name a mirror in HF_ENDPOINT")  # fmt: skip
    return Finding("hub", OK, f"{endpoint()} answers")


def modelscope() -> Iterator[Finding]:
    """Say whether ModelScope answers, where its package is installed."""
    if find_spec("modelscope") is None or is_offline():
        return
    if reason := why_unreachable(MODELSCOPE):
        yield Finding("modelscope", WARN, f"{MODELSCOPE} does not answer ({reason})", "give local folders")
    else:
        yield Finding("modelscope", OK, f"{MODELSCOPE} answers")


def proxies() -> Finding:
    """Name the proxies of the environment, without their passwords."""
    found = {name: without_passwords(url if "://" in url else f"http://{url}")
             for name, url in sorted(getproxies().items()) if name != "no"}  # fmt: skip
    return Finding("proxies", OK, ", ".join(f"{name} {url}" for name, url in found.items()) or "none")


def servers(urls: str | None, flag: str, key_variable: str) -> Iterator[Finding]:
    """Ask each server which models it serves. Raises UserError for what is no address."""
    for url in comma_separated(urls):
        client = HttpClient([url], flag=flag, key_variable=key_variable, timeout=SECONDS, patience=0.0, concurrency=1)
        try:
            names = [str(card["id"]) for card in client.get_from(client.urls[0], "/v1/models", model_cards)]
        except (UserError, KeyError) as error:
            yield Finding(
                "server",
                BAD,
                without_passwords(str(error).partition("; tried for")[0]),
                "start it, or give another address",
            )
        else:
            yield Finding("server", OK, f"{flag} {client.urls[0]} serves {', '.join(names) or 'no model'}")
        finally:
            client.close()


def trackers() -> Finding:
    """Say which experiment trackers are installed, and whether wandb finds a key; never the key."""
    there, found = [name for name in TRACKERS if _is_there(name)], []
    for name in there:
        if name == "wandb":
            try:
                check_wandb("online")
                found.append("wandb (logged in)")
            except UserError:
                found.append("wandb (no key: wandb login, or --wandb_mode offline)")
        else:
            found.append(name)
    return Finding("trackers", OK, ", ".join(found) or "none installed; metrics.jsonl and the report need none")


def _is_there(name: str) -> bool:
    try:
        return installed(name)
    except UserError:  # a folder of this name hides it
        return False
