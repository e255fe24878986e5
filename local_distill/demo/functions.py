"""New knowledge that every machine with Python has: functions of its standard library, from docstring to code."""

import ast
import inspect
import random
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

HELD_OUT = ("argparse", "calendar", "configparser", "fractions", "heapq", "shlex", "statistics", "textwrap")
"""Modules that nothing is trained on."""
DOCSTRING = range(20, 200)
"""Characters of the first paragraph of a docstring that says something and no more."""
IGNORED = -100
"""The label of a token that is not predicted, as in cross_entropy."""


class Function(NamedTuple):
    """docstring: its first paragraph, on one line. code: the source without any docstring."""

    docstring: str
    code: str


def held_out_functions() -> list[Function]:
    """All of HELD_OUT, in the order of the files."""
    return [each for name in HELD_OUT for each in read(folder() / f"{name}.py")]


def training_functions(seed: int) -> list[Function]:
    """Those of all other top-level modules, shuffled; none whose docstring is a held-out one's."""
    files = sorted(file for file in folder().glob("*.py") if file.stem not in HELD_OUT)
    taken = {each.docstring for each in held_out_functions()}
    found = [each for file in files for each in read(file) if each.docstring not in taken]
    random.Random(seed).shuffle(found)
    return found


@cache
def read(file: Path) -> tuple[Function, ...]:
    """The functions and methods of a file that have a docstring of a fitting length."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        docstring = " ".join(inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")[0].split())
        if len(docstring) in DOCSTRING:
            node.body = node.body[1:]
            found.append(Function(docstring, ast.unparse(node)))
    return tuple(found)


def batch(
    tokenizer: PreTrainedTokenizerBase, functions: Sequence[Function], most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chats in which the docstring is asked and the code is answered, padded on the right.

    most: tokens of an answer; the rest of longer ones is cut off.
    Returns input ids and labels, both (B, L) int64; labels are IGNORED but for the answer, its end included.
    """
    rows = []
    for each in functions:
        chat = [{"role": "user", "content": each.docstring}]
        asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(asked, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(each.code, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][:most]
        rows.append((asked, answer))
    length = max(len(asked) + len(answer) for asked, answer in rows)
    ids = torch.full((len(rows), length), tokenizer.eos_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    for row, (asked, answer) in enumerate(rows):
        ids[row, : len(asked) + len(answer)] = torch.tensor(asked + answer)
        labels[row, len(asked) : len(asked) + len(answer)] = torch.tensor(answer)
    return ids, labels


def folder() -> Path:
    """Where the standard library's source is."""
    return Path(sysconfig.get_paths()["stdlib"])
