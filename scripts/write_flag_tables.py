"""Write docs/flags.md from the settings themselves; a test fails when it is out of date.

python scripts/write_flag_tables.py
"""

import dataclasses
from itertools import groupby
from pathlib import Path

from local_distill.config import TrainConfig
from local_distill.settings import describe, setting_types

TARGET = Path(__file__).parent.parent / "docs" / "flags.md"
INTRODUCTION = """\
# Flags

Every flag can be written with hyphens (`--batch-size`), and given in a YAML file (`--config run.yaml`, names without
dashes); the command line wins. Switches have a negative: `--no-use_lora`. A resumed run must keep the settings
marked •, the others may change.

This page is written by `scripts/write_flag_tables.py` from `local_distill/config.py`.
"""


def render() -> str:
    """The page."""
    parts = [INTRODUCTION]
    types = setting_types(TrainConfig)
    for group, fields in groupby(dataclasses.fields(TrainConfig), key=lambda f: f.metadata["group"]):
        parts.append(f"\n## {group[0].upper()}{group[1:]}\n\n| flag | takes | |\n| --- | --- | --- |\n")
        for field in fields:
            choices = " \\| ".join(field.metadata["choices"])
            takes = (
                choices
                or {"bool": "switch", "int": "whole number", "float": "number", "str": "text"}[
                    types[field.name].__name__
                ]
            )
            text = describe(field).replace("|", "\\|")
            parts.append(f"| `--{field.name}`{' •' if field.metadata['fixed'] else ''} | {takes} | {text} |\n")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
