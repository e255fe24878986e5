"""What a command is."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from local_distill.config.parsing import build_parser, parse


@dataclass(frozen=True)
class Command:
    """A command of ``local-distill``.

    settings: a dataclass of ``option`` and ``argument`` fields. run: takes one and returns the exit code.
    usage: how it is written, with examples, for ``--help``. description: one sentence.
    """

    name: str
    settings: type
    run: Callable[[Any], int]
    usage: str
    description: str

    def __call__(self, argv: Sequence[str]) -> int:
        """Run it on the words that follow its name. Raises UserError."""
        return self.run(parse(self.settings, argv, prog=self._prog, usage=self.usage, description=self.description))

    def parser(self) -> argparse.ArgumentParser:
        """Its flags, for shell completion."""
        return build_parser(
            self.settings, prog=self._prog, usage=self.usage, description=self.description, add_help=False
        )

    @property
    def _prog(self) -> str:
        return f"local-distill {self.name}"
