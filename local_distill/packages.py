"""Which packages are there: not what lies in the working folder under their names.

``python -m`` looks for packages in the working folder first. A folder there that is called vllm, wandb or datasets is
then taken for the package, by this program and by the libraries that ask for each other; where the package is not
installed, even one without any code in it.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from local_distill.errors import UserError

PROGRAM = Path(__file__).resolve().parents[1]
"""The folder that this program is imported from."""


def leave_out_working_folder() -> None:
    """Let ``python -m`` import no package from the working folder, unless this program itself is there."""
    here = Path.cwd()
    if sys.path[0] in ("", str(here)) and here.resolve() != PROGRAM:
        del sys.path[0]


def installed(name: str) -> bool:
    """Return whether the package can be imported. Raises UserError where something of the working folder hides it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return False
    origin = getattr(spec, "origin", name)
    if origin is None:
        return False  # a folder without code, wherever it is
    here = Path.cwd()
    if Path(origin) not in (here / f"{name}.py", here / name / "__init__.py"):
        return True
    elsewhere = [each for each in sys.path if each not in ("", str(here))]
    if PathFinder.find_spec(name, elsewhere) is None:
        from importlib.metadata import packages_distributions  # here: it takes a while

        return name in packages_distributions()  # it is installed from here, and being worked on
    found = Path(origin).parent if Path(origin).parent != here else Path(origin)
    raise UserError(
        f"{found}: is taken for the package {name}, for Python looks in the working folder first; rename it, or start "
        "elsewhere"
    )
