"""Settings as the fields of a dataclass: command lines, YAML files, ``--help`` and docs/flags.md are made from them."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar

import yaml

from local_distill.config.builtin import OrOutside
from local_distill.config.other_names import of_other_trainers
from local_distill.config.ranges import Range
from local_distill.errors import UserError, one_line
from local_distill.runs.folder import LATEST
from local_distill.wording import did_you_mean

NEEDED: dict[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
"""How an error calls what a setting of a type needs."""

ALSO = {"output": "output_dir", "output_dir": "output"}
"""What is written goes by one of these names; the other one is understood."""
YAML_SUFFIXES = (".yaml", ".yml")
FILE_BY_PLACE = "yaml_by_place"
"""Settings with this attribute may be read from a YAML file that is named without ``--config``."""

Settings = TypeVar("Settings")


def option(
    group: str | None, help: str, default: Any = None, *, choices: tuple[str, ...] = (), within: Range | None = None,
    fixed: bool = False, many: bool = False,
) -> Any:  # fmt: skip
    """Make one setting.

    group: the heading of ``--help`` it stands under; None for a place on the command line. choices: the only values
    it may take. within: of a number. fixed: a resumed run must have the same value, or it would be another run.
    """
    metadata = {"group": group, "help": help, "choices": choices, "within": within, "fixed": fixed, "many": many}
    return dataclasses.field(default=default, metadata=metadata)


def same_as(settings: type, name: str, **changes: Any) -> Any:
    """Make a setting that another command has: its help, choices and default, but for ``changes`` of ``option``."""
    (field,) = (each for each in dataclasses.fields(settings) if each.name == name)
    return option(**{**field.metadata, "default": field.default, **changes})


def argument(help: str, *, many: bool = False) -> Any:
    """Make a setting that goes by its place on the command line: text, or with ``many`` a tuple of one or more."""
    return option(None, help, dataclasses.MISSING, many=many)


def parse(
    settings: type[Settings],
    argv: Sequence[str],
    *,
    prog: str,
    usage: str,
    description: str,
    first: Callable[[dict[str, Any]], None] | None = None,
) -> Settings:
    """Return the settings of a command: defaults, then the YAML file of ``--config``, then the command line.

    first: looks at what is given, by name, before the settings check each other, for which torch may be imported.
    Raises UserError for anything that is unknown or of the wrong kind. ``--help`` prints and exits.
    """
    parser = build_parser(settings, prog=prog, usage=usage, description=description)
    namespace, left_over = parser.parse_known_args([_underscored(word) for word in argv])
    given = vars(namespace)
    file = given.pop("config", None)
    if left_over and getattr(settings, FILE_BY_PLACE, False) and _is_yaml(left_over[0]):
        word = left_over.pop(0)
        if file is not None:
            raise UserError(f"{word}: given beside --config {file}, which is the same; settings come from one file")
        file = word
    if left_over:
        parser.error(f"unrecognized arguments: {left_over[0]}")
    merged = {**({} if file is None else read_yaml(settings, Path(file))), **given}
    if first is not None:
        first(merged)
    return settings(**merged)


def _is_yaml(word: str) -> bool:
    return not word.startswith("-") and (word.lower().endswith(YAML_SUFFIXES) or Path(word).expanduser().is_file())


def build_parser(
    settings: type, *, prog: str, usage: str, description: str, add_help: bool = True
) -> argparse.ArgumentParser:
    """Return an argparse parser with a flag for every field."""
    parser = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        argument_default=argparse.SUPPRESS,  # only what is really given overrides the YAML file
        allow_abbrev=False,
        add_help=add_help,
    )
    parser.settings = settings
    parser.add_argument("--config", metavar="YAML", help="Read settings from this file; the command line wins.")
    groups: dict[str, Any] = {}
    types = setting_types(settings)
    for field in dataclasses.fields(settings):
        heading = field.metadata["group"]
        if heading is None:
            several: dict[str, Any] = {"nargs": "+"} if field.metadata["many"] else {}
            parser.add_argument(field.name, metavar=field.name.upper(), help=field.metadata["help"], **several)
            continue
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        _add_flag(groups[heading], field, types[field.name])
    return parser


def read_yaml(settings: type, path: Path) -> dict[str, Any]:
    """Read settings from a YAML mapping with the flags' names; raises UserError for one that is not of its type."""
    where = f"--config {path}"
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        content = yaml.load(text, _Loader)
        written = yaml.load(text, yaml.BaseLoader)  # every word as it stands there
    except OSError as error:
        hint = "" if path.expanduser().exists() else did_you_mean(str(path))
        raise UserError(f"{where}: cannot be read ({error.strerror}); {hint}give an existing YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{where}: not valid YAML, line {line}: {error.problem}; mend it there") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date like 2024-13-45
        raise UserError(f"{where}: not valid YAML ({one_line(error, width=None)}); mend the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: needs to be a mapping of flag names to values, like `batch_size: 8`")
    fields = {field.name: field for field in flags_of(settings)}
    types = setting_types(settings)
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        name = ALSO[name] if name not in fields and ALSO.get(name) in fields else name
        if name not in fields:
            theirs = of_other_trainers(name, fields, dashes="")
            unknown = f"unknown setting; {_did_you_mean(name, fields)}--help lists them all"
            raise UserError(f"{where}: {key}: {theirs or unknown}")
        if name in found:
            raise UserError(f"{where}: {name}: given twice, once with hyphens; drop one of them")
        try:
            found[name] = _from_yaml(fields[name], types[name], value, written.get(key, value))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"{where}: {name}: {error}") from error
    return found


def flags_of(settings: type) -> list[dataclasses.Field[Any]]:
    """Return the fields that are flags, not places on the command line."""
    return [field for field in dataclasses.fields(settings) if field.metadata["group"] is not None]


def setting_types(settings: type) -> dict[str, type]:
    """Return the plain type of each setting: bool, int, float or str."""
    hints = typing.get_type_hints(settings)
    return {
        name: next(t for t in typing.get_args(hint) or (hint,) if t is not NoneType) for name, hint in hints.items()
    }


def comma_separated(text: str | None) -> list[str]:
    """Return the words of a setting that takes several; none of one that was not given."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def describe(field: dataclasses.Field[Any]) -> str:
    """Return a setting's help, with its default, as ``--help`` and docs/flags.md show it."""
    help_text: str = field.metadata["help"]
    if field.default is None or field.default == "" or "efault" in help_text:
        return help_text
    return f"{help_text} Default: {str(field.default).lower() if field.default in (True, False) else field.default}."


class _Loader(yaml.SafeLoader):
    """A key that is given twice in YAML is a mistake here; the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"`{twice[0]}` is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Parser(argparse.ArgumentParser):
    """Errors of argparse come in our form."""

    settings: type

    def error(self, message: str) -> NoReturn:
        name, _, reason = message.removeprefix("argument ").partition(": ")
        if name == "unrecognized arguments":
            word = reason.split()[0].partition("=")[0]
            names = [field.name for field in flags_of(self.settings)]
            by_place = len(names) < len(dataclasses.fields(self.settings))
            if theirs := of_other_trainers(word.lstrip("-"), names, by_place):
                raise UserError(f"{word}: {theirs}")
            if not word.startswith("-"):
                raise UserError(f"{word}: belongs to no flag; switches such as --use_lora take no value, drop it")
            raise UserError(
                f"{word}: unknown flag; {_did_you_mean(word.lstrip('-'), names, '--')}--help lists them all"
            )
        if name == "the following arguments are required":
            raise UserError(f"{reason}: not given; --help has examples")
        if reason.startswith("expected"):
            reason = f"needs a value after it; one that begins with a dash goes behind an equals sign: {name}=-…"
        elif reason.startswith("ignored explicit argument"):
            name, _, off = name.partition("/")
            reason = f"a switch, takes no value; give {name} or {off}"
        raise UserError(f"{name}: {reason}")


def _add_flag(group: Any, field: dataclasses.Field[Any], kind: type) -> None:
    help_text = describe(field).replace("%", "%%")
    if kind is bool:
        group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, help=help_text)
        return
    more: dict[str, Any] = {"nargs": "?", "const": LATEST} if field.name == "resume" else {}
    choices = field.metadata["choices"]
    more |= {"choices": choices} if choices else {}  # for shells that complete; the type has checked them before
    plain = {int: "N", float: "X", str: field.name.rsplit("_", 1)[-1].upper()}[kind]
    metavar = f"{{{','.join(choices)}}}" if choices and not isinstance(choices, OrOutside) else plain
    also = [f"--{ALSO[field.name]}"] if field.name in ALSO else []
    group.add_argument(
        f"--{field.name}", *also, type=partial(_from_word, field, kind), metavar=metavar, help=help_text, **more
    )


def _underscored(word: str) -> str:
    """--batch-size is --batch_size; values, and what stands after an equals sign, are left alone."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    if name.startswith("--no-"):  # argparse's own spelling of a flag that is switched off
        return "--no-" + name[5:].replace("-", "_") + equals + value
    return "--" + name[2:].replace("-", "_") + equals + value


def _from_word(field: dataclasses.Field[Any], kind: type, word: str) -> Any:
    """A setting's value out of text. Raises ArgumentTypeError, for argparse and the YAML file to add the place."""
    choices = field.metadata["choices"]
    if choices and word not in choices:
        raise argparse.ArgumentTypeError(f"{word!r} given, needs one of {', '.join(choices)}")
    try:
        return kind(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} given, needs {NEEDED[kind]}") from error


def _from_yaml(field: dataclasses.Field[Any], kind: type, value: Any, written: Any) -> Any:
    """A setting's value out of a YAML value. written: its text, in which `off` and 007 are still what they were."""
    if value is None:
        return field.default
    if field.name == "resume" and isinstance(value, bool):
        return LATEST if value else None
    if field.name == "chat_template_kwargs" and isinstance(value, dict):  # it reads naturally as a YAML mapping
        return json.dumps(value, default=str)
    if isinstance(value, list | dict) or (isinstance(value, bool) != (kind is bool) and kind is not str):
        raise argparse.ArgumentTypeError(f"{value!r} given, needs {NEEDED[kind]}")
    if kind is bool:
        return value
    if isinstance(value, float) and value.is_integer() and kind is int:
        value = int(value)
    # YAML 1.1 reads 1e-4 as text, so numbers may come as text.
    return _from_word(field, kind, str(written if kind is str else value))


def _did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word.replace("-", "_"), list(names), n=1, cutoff=0.6)
    return f"did you mean {prefix}{near[0]}? " if near else ""
