"""Every command that a document shows can be typed: its flags, their values and the files that it names are there."""

import re
import shlex
from pathlib import Path

import pytest

from local_distill.commands import COMMANDS, load
from local_distill.config.parsing import build_parser, parse

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        "Makefile",
        "docs/**/*.md",
        "examples/**/*.yaml",
        "examples/**/*.sh",
        "examples/**/*.sbatch",
    )
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
OUTPUTS = re.compile(r"```text\n.*?```", re.S)
COMMAND = re.compile(
    r"(?:-m local_distill\.train_on_policy_local|(?:local-distill|-m local_distill) (?=(?:VERBS)\b)(?P<verb>\w+))"
    r"(?P<words>[^\n`|]*)".replace("VERBS", "|".join(COMMANDS))
)
OF_THE_READER = re.compile(r"(^|/)(run|runs/.*)\.ya?ml$|^/")
"""Settings that a reader has and the repository has not."""
ELIDED = re.compile(r"…|\.\.\.|[\[\]{}$]|\b[A-Z]{1,6}\b|\$\(|[&;]")
"""What stands for other words, or is the shell's: a command that has it is read word by word."""


def commands(text):
    """Return (verb, words) of each command, in the order of the text; lines that go on are joined first."""
    joined = re.sub(r"\\\n[#>\s]*", "", OUTPUTS.sub(lambda shown: first_lines(shown[0]), text))
    for found in COMMAND.finditer(joined):
        yield found["verb"] or "train", found["words"]


def first_lines(block):
    """Of a block of text, the commands that were typed and not what they printed."""
    return "\n".join(line for line in block.splitlines() if line.startswith("$ "))


SHOWN = [
    pytest.param(verb, words, id=f"{path.relative_to(ROOT).as_posix()}-{number}")
    for path in DOCUMENTS
    for number, (verb, words) in enumerate(commands(path.read_text(encoding="utf-8")))
]


def test_commands_are_found():
    shown = list(
        commands("`local-distill plan --gpus 2` and\n\n    python -m local_distill.train_on_policy_local \\\n  --x y")
    )
    assert shown == [("plan", " --gpus 2"), ("train", " --x y")]
    assert len(SHOWN) > 100, "or the expression finds them no longer"


@pytest.mark.parametrize(("verb", "words"), SHOWN)
def test_a_command_can_be_typed(verb, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = load(verb).settings
    parser = build_parser(settings, prog=verb, usage="", description="")
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert [flag for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", words) if underscored(flag) not in known] == []
    if "--" not in words or "--help" in words or ELIDED.search(re.sub(r"'[^']*'", "", words)):
        return
    argv = shlex.split(words, comments=True)
    if verb == "train" and not argv[0].startswith("-"):  # train run.yaml
        argv = ["--config", *argv]
    file = argv[argv.index("--config") + 1] if "--config" in argv else None
    if verb == "init" and "--yes" not in argv:  # it would ask here what is missing
        parser.parse_args([underscored(word) for word in argv])
    elif file and not Path(file).is_file():
        assert OF_THE_READER.search(file), f"{file} is not there"
        parser.parse_args([underscored(word) for word in argv])
    else:
        parse(settings, argv, prog=verb, usage="", description="")


def underscored(word):
    """Return the flag as it is declared."""
    return "--" + word[2:].replace("-", "_") if word.startswith("--") and not word.startswith("--no-") else word


@pytest.mark.parametrize(("verb", "words"), [shown for shown in SHOWN if "Qwen/Qwen3" in shown.values[1]])
def test_qwen3_is_not_left_to_think_in_few_tokens(verb, words):
    if verb in ("train", "eval", "chat"):
        assert "enable_thinking" in words
