"""Which trackers a run uses, and whether they can be: seen to before any model is loaded."""

from __future__ import annotations

import difflib
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from local_distill.config.parsing import comma_separated
from local_distill.errors import UserError
from local_distill.packages import installed

_KNOWN = tuple(name for name in LoggerType.list() if name != LoggerType.ALL.value)
_PACKAGES = {"comet_ml": "comet-ml"}  # where pip calls it something else
_WANDB_CLOUD = "api.wandb.ai"  # netrc files name it even after the service moved to another host


def tracker_names(wandb_project: str | None, trackers: str | None, wandb_mode: str = "online") -> list[str]:
    """Return the trackers to hand to ``Accelerator(log_with=…)``, each of them installed.

    wandb_project, trackers, wandb_mode: as given on the command line; a project means wandb, and
    disabled means no wandb, whoever asked for it.

    Raises UserError for a tracker that accelerate does not know, or whose package is missing.
    """
    listed = [name.lower() for name in comma_separated(trackers)]
    wanted = dict.fromkeys(["wandb" if wandb_project else "", *listed])  # each once, in order
    names = [name for name in wanted if name and not (name == "wandb" and wandb_mode == "disabled")]
    for name in names:
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"--trackers: {name} is not a tracker; {hint}choose from {', '.join(sorted(_KNOWN))}")
        _require_installed(name, "--wandb_project" if name == "wandb" and wandb_project else "--trackers")
    return names


def check_wandb(mode: str) -> None:
    """See to it now that wandb can log in later, without asking on the terminal or the network.

    Raises UserError when ``mode`` is online and there is no key to log in with.
    """
    if mode != "online":
        return
    _require_installed("wandb", "--wandb_mode online")
    if not _has_wandb_key():
        raise UserError(
            "--wandb_mode online: no Weights & Biases key found; run `wandb login`, set WANDB_API_KEY, "
            "or use --wandb_mode offline"
        )


def _require_installed(name: str, flag: str) -> None:
    installed(name)  # for what it raises: accelerate sees to the rest, and knows tensorboard by another name too
    if LoggerType(name) not in get_available_trackers():
        package = _PACKAGES.get(name, name)
        raise UserError(f"{flag}: the package {package} is not installed; pip install {package}")


def _has_wandb_key() -> bool:
    """Return whether wandb finds a key where it looks for one: environment, settings files, netrc.

    ``wandb.login(prompt=False)`` answers the same question, but asks the server for the user's name first.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb

    settings = wandb.setup().settings
    hosts = (urlsplit(settings.base_url).netloc, _WANDB_CLOUD)
    return bool(settings.api_key) or any(_netrc_has(host) for host in hosts)


def _netrc_has(host: str) -> bool:
    named = os.environ.get("NETRC")
    places = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    path = next((place.expanduser() for place in places if place.expanduser().exists()), None)
    if path is None:
        return False
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (netrc.NetrcParseError, OSError) as error:
        raise UserError(f"{path}: cannot be read for a Weights & Biases key: {error}") from error
    return bool(entry and entry[2])
