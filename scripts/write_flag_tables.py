"""Write docs/flags.md from the settings of all commands; a test fails when it is out of date.

python scripts/write_flag_tables.py
"""

import dataclasses
from itertools import groupby
from pathlib import Path
from typing import Any

from local_distill.commands import COMMANDS, load
from local_distill.config.parsing import describe, setting_types
from local_distill.config.train_config import TrainConfig, TrainSettings

TARGET = Path(__file__).parent.parent / "docs" / "flags.md"
INTRODUCTION = """\
# Flags

Every flag can be written with hyphens (`--batch-size`), and given in a YAML file (`--config run.yaml`, names without
dashes); the command line wins. Switches have a negative: `--no-use_lora`. A resumed run must keep the settings
marked •, the others may change. `python -m local_distill.train_on_policy_local` takes what `local-distill train` takes.

This page is written by `scripts/write_flag_tables.py` from the settings of the commands.
"""
HEAD = "| flag | takes | |\n| --- | --- | --- |\n"
KINDS = {bool: "switch", int: "whole number", float: "number", str: "text"}


def render() -> str:
    """The page."""
    return INTRODUCTION + "".join(render_command(name) for name in COMMANDS)


def render_command(name: str) -> str:
    """A command's heading, what it does, and a table for each of its groups of settings; one group needs no heading."""
    command = load(name)
    shown, of_train = dataclasses.fields(command.settings), ""
    if issubclass(command.settings, TrainConfig) and not issubclass(command.settings, TrainSettings):
        shared = {field.name for field in dataclasses.fields(TrainConfig)}
        shown = tuple(field for field in shown if field.name not in shared)
        of_train = " Takes all settings of [train](#train), and:"
    types = setting_types(command.settings)
    groups = [(group, list(fields)) for group, fields in groupby(shown, key=group_of)]
    parts = [f"\n## {name}\n\n{command.description}{of_train}\n"]
    for group, fields in groups:
        heading = "" if group is None or len(groups) <= 2 else f"\n### {group[0].upper()}{group[1:]}\n"
        parts += [heading, "\n", HEAD if group else HEAD.replace("flag", "place"), *(row(f, types) for f in fields)]
    return "".join(parts)


def group_of(field: dataclasses.Field[Any]) -> str | None:
    """The heading that a setting stands under; None for a place on the command line."""
    group: str | None = field.metadata["group"]
    return group


def row(field: dataclasses.Field[Any], types: dict[str, type]) -> str:
    """A setting's line of the table."""
    name = (
        f"`--{field.name}`{' •' if field.metadata['fixed'] else ''}" if group_of(field) else f"`{field.name.upper()}`"
    )
    takes = " \\| ".join(field.metadata["choices"]) or KINDS.get(types[field.name], "text")
    text = describe(field) if group_of(field) else field.metadata["help"]
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return f"| {name} | {takes} | {text} |\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
