"""local-distill watch: the page of runs that go on, which follows them."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass

from local_distill.commands import Command
from local_distill.config.parsing import argument, option

USAGE = """\
local-distill watch RUN [RUN …] [--port N] [--open]

examples:
  local-distill watch runs/demo --open          # the report's page in the browser, which follows the run
  local-distill watch runs/lora runs/full       # both on one page
  local-distill watch runs/next                 # also before the run has begun

The page is served to this machine alone. Ctrl-C ends it; the run is not touched.
"""


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """``local-distill watch`` has these settings."""

    runs: tuple[str, ...] = argument("Folders of runs; several are compared on one page.", many=True)
    port: int = option("output", "Port of this machine where the page is; 0: any that is free.", 8765)
    open: bool = option("output", "Open the page in the browser.", False)


def run(settings: WatchSettings) -> int:
    """Serve the page until Ctrl-C."""
    from local_distill.process.signals import sigint_is_an_answer
    from local_distill.report.reading import named
    from local_distill.report.serving import open_server

    folders = named(settings.runs)
    with open_server(folders, settings.port) as server, sigint_is_an_answer():
        try:
            for folder, _ in folders:
                if not folder.is_dir():
                    print(f"{folder}: not there yet; the page waits for it")
            url = f"http://127.0.0.1:{server.port}/"
            print(f"{url}  (Ctrl-C ends the watch, not the run)", flush=True)
            if tunnel := ssh_line(os.environ, server.port):
                print(f"on your own machine, to see it there: {tunnel}", flush=True)
            if settings.open:
                _open(url)
            server.serve_forever()
        except KeyboardInterrupt:
            print()  # after the ^C that the terminal shows
    return 0


def _open(url: str) -> None:
    """Open the browser; one that runs in the terminal does not come back."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def ssh_line(environment: Mapping[str, str], port: int) -> str:
    """Return the command that makes the page visible at the other end of an ssh session; "" outside of one."""
    connection = environment.get("SSH_CONNECTION", "").split()
    if len(connection) != 4:
        return ""
    _, _, host, ssh_port = connection
    other_port = "" if ssh_port == "22" else f" -p {ssh_port}"
    return f"ssh -N -L {port}:127.0.0.1:{port}{other_port} {environment.get('USER') or getpass.getuser()}@{host}"


COMMAND = Command(
    "watch", WatchSettings, run, USAGE, "The page of a report, served while the runs go on; it follows them by itself."
)
