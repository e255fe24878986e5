"""All that is looked at, in the order in which it is shown; what waits for the network waits at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from local_distill.doctor import machine, network
from local_distill.doctor.findings import Finding
from local_distill.rollouts import vllm_server
from local_distill.teachers import server


def examine(
    environment: Mapping[str, Any], output_dir: str | None, teacher_url: str | None, rollouts_url: str | None
) -> list[Finding]:
    """Return what is found. environment: as environment.json records it. Raises UserError for what is no address."""
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(lambda: [network.hub()]),
            pool.submit(lambda: list(network.modelscope())),
            pool.submit(lambda: list(network.servers(teacher_url, "--teacher_url", server.KEY_VARIABLE))),
            pool.submit(lambda: list(network.servers(rollouts_url, "--rollouts_url", vllm_server.KEY_VARIABLE))),
        ]
        found = [
            *machine.versions(environment), *machine.gpus(environment), machine.memory(), *machine.disks(output_dir),
            machine.allocator(), machine.threads(), network.proxies(), network.trackers(),
        ]  # fmt: skip
        return found + [finding for each in asked for finding in each.result()]
