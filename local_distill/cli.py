"""Command line and YAML → TrainConfig. Every flag, its help and its type come from the config's fields."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

import yaml

from local_distill.config import TrainConfig
from local_distill.errors import UserError

LATEST = "latest"
"""What ``--resume`` means when no folder follows it."""

USAGE = """\
python -m local_distill.train_on_policy_local --student_model MODEL --teacher_model MODEL [settings]

examples:
  python -m local_distill.train_on_policy_local --student_model Qwen/Qwen3-0.6B --teacher_model Qwen/Qwen3-4B
  python -m local_distill.train_on_policy_local --config run.yaml --steps 200
  accelerate launch --config_file local_distill/accelerate_config_multi_gpu.yaml \\
      -m local_distill.train_on_policy_local --config run.yaml
"""


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """The settings of a run: defaults, then the YAML file, then the command line.

    Raises UserError for anything that is unknown or of the wrong kind. ``--help`` prints and exits.
    """
    given = vars(_parser().parse_args([_underscored(word) for word in argv]))
    file = given.pop("config", None)
    settings = {**(read_yaml(Path(file)) if file else {}), **given}
    return TrainConfig(**settings)


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings from a YAML mapping with the flags' names, each checked for its type."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror}); give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path}: not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: needs to be a mapping of flag names to values, like `batch_size: 8`")
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    settings = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise UserError(f"--config {path}: unknown setting `{key}`{_did_you_mean(name, fields)}")
        settings[name] = _from_yaml(path, fields[name], value)
    return settings


def setting_types() -> dict[str, type]:
    """The plain type of each setting: bool, int, float or str."""
    hints = typing.get_type_hints(TrainConfig)
    return {
        name: next(t for t in typing.get_args(hint) or (hint,) if t is not NoneType) for name, hint in hints.items()
    }


def describe(field: dataclasses.Field[Any]) -> str:
    """A setting's help, with its default, as ``--help`` and docs/flags.md show it."""
    help_text: str = field.metadata["help"]
    if field.default is None or field.default == "" or "efault" in help_text:
        return help_text
    return f"{help_text} Default: {str(field.default).lower() if field.default in (True, False) else field.default}."


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors in our form."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0]
            names = [field.name for field in dataclasses.fields(TrainConfig)]
            raise UserError(f"{word}: unknown flag{_did_you_mean(word.lstrip('-'), names)}; --help lists them all")
        raise UserError(message.removeprefix("argument "))


def _parser() -> _Parser:
    parser = _Parser(
        prog="local_distill.train_on_policy_local",
        usage=USAGE,
        description="On-policy distillation of a student model from a teacher model.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # only what is really given overrides the YAML file
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="YAML", help="Read settings from this file; the command line wins.")
    groups: dict[str, Any] = {}
    types = setting_types()
    for field in dataclasses.fields(TrainConfig):
        heading = field.metadata["group"]
        group = groups.setdefault(heading, None) or parser.add_argument_group(heading)
        groups[heading] = group
        _add_flag(group, field, types[field.name])
    return parser


def _add_flag(group: Any, field: dataclasses.Field[Any], kind: type) -> None:
    help_text = describe(field).replace("%", "%%")
    if kind is bool:
        group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, help=help_text)
        return
    more: dict[str, Any] = {"nargs": "?", "const": LATEST} if field.name == "resume" else {}
    choices = field.metadata["choices"] or None
    metavar = None if choices else {int: "N", float: "X", str: field.name.rsplit("_", 1)[-1].upper()}[kind]
    group.add_argument(f"--{field.name}", type=kind, choices=choices, metavar=metavar, help=help_text, **more)


def _underscored(word: str) -> str:
    """--batch-size is --batch_size; values, and what stands after an equals sign, are left alone."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    if name.startswith("--no-"):  # argparse's own spelling of a flag that is switched off
        return "--no-" + name[5:].replace("-", "_") + equals + value
    return "--" + name[2:].replace("-", "_") + equals + value


def _from_yaml(path: Path, field: dataclasses.Field[Any], value: Any) -> Any:
    kind = setting_types()[field.name]
    if value is None:
        return field.default
    if field.name == "resume" and isinstance(value, bool):
        return LATEST if value else None
    if kind is str and isinstance(value, dict):  # chat_template_kwargs reads naturally as a YAML mapping
        return json.dumps(value)
    try:
        if isinstance(value, bool) != (kind is bool) or (kind is int and value != int(value)):
            raise ValueError
        converted = kind(value)  # YAML 1.1 reads 1e-4 as text, so numbers may come as text
    except (TypeError, ValueError) as error:
        raise UserError(f"--config {path}: {field.name}: {value!r} given, needs {kind.__name__}") from error
    choices = field.metadata["choices"]
    if choices and converted not in choices:
        raise UserError(f"--config {path}: {field.name}: {value!r} given, needs one of {', '.join(choices)}")
    return converted


def _did_you_mean(word: str, names: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(word.replace("-", "_"), list(names), n=1, cutoff=0.5)
    return f", did you mean `{near[0]}`?" if near else ""
