"""local-distill doctor: what this machine has, what is wrong with it, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from local_distill.commands import Command
from local_distill.config.parsing import option, same_as
from local_distill.config.train_config import TrainConfig
from local_distill.monitor.working import working

USAGE = """\
local-distill doctor [--teacher_url URL] [--rollouts_url URL] [--output_dir DIR] [--json]

examples:
  local-distill doctor
  local-distill doctor --teacher_url http://localhost:8000     # and that server
  local-distill doctor --json > doctor.json                    # for a bug report: without keys and passwords
"""
DESCRIPTION = (
    "Looks at versions, GPUs, memory, disks, hub, proxies, trackers and servers, and says what to do where something "
    "is not right. Exit code 1 where training is impossible."
)


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """``local-distill doctor`` has these settings."""

    teacher_url: str | None = same_as(TrainConfig, "teacher_url", group="what to look at")
    rollouts_url: str | None = same_as(TrainConfig, "rollouts_url", group="what to look at")
    output_dir: str | None = option("what to look at", "Folder in which runs will be written. Default: runs.")
    json: bool = option("what to look at", "Print JSON, with versions and devices as environment.json has them.", False)


def run(settings: DoctorSettings) -> int:
    """Examine, and print what is found. Returns 0, or 1 where something makes training impossible."""
    with working("looking at this machine"):
        from local_distill.doctor.examination import examine
        from local_distill.doctor.findings import BAD
        from local_distill.process.isolation import quiet_libraries
        from local_distill.runs.environment import this_start

        with quiet_libraries():
            environment = this_start(processes=1)
            found = examine(environment, settings.output_dir, settings.teacher_url, settings.rollouts_url)
    if settings.json:
        from local_distill.runs.jsonl import to_json

        print(to_json({"findings": [asdict(each) for each in found], "environment": environment}, indent=2))
    else:
        from rich.text import Text

        from local_distill.monitor.terminal import open_console

        console, width = open_console(), max(len(each.about) for each in found)
        for each in found:
            style = {"ok": "green", "warn": "yellow", "bad": "bold red"}[each.mark]
            line = Text.assemble((f"{each.mark:4}", style), f"  {each.about:{width}}  {each}")
            console.print(line, soft_wrap=True)
    return int(any(each.mark == BAD for each in found))


COMMAND = Command("doctor", DoctorSettings, run, USAGE, DESCRIPTION)
