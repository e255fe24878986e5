"""The way of the settings through start-up, counted on a real run of two tiny models, on the processor.

    python benchmarks/startup_walk.py             # two rows: to the first weights, and to the first step of the loop
    python benchmarks/startup_walk.py --files     # and the files, in the order in which they are entered

A function is on the way when it is handed the settings of the run, or a record that holds them, and is called
between the entry and the mark; each counts once, at its first call, as one reads it once. *Files* are the files of
the package that these functions stand in. *Returns* are the times when the next function on the way stands in
another file than the last one, and in one that was entered before. A function that is handed single values alone
knows nothing of the settings and is not on the way; nor is what runs while a module is imported. The weights are
found by transformers' own ``from_pretrained``, the loop by ``distil``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import local_distill
from local_distill.train_on_policy_local import main as train

PACKAGE = f"{Path(local_distill.__file__).parent}{os.sep}"
SETTINGS = ("TrainConfig", "TrainFields")
HOLDERS = ("config", "inputs", "settings")
"""Fields of a record that lead to the settings."""
WORDS = [
    "--steps", "1", "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "4", "--eval_prompts", "2",
]  # fmt: skip


@dataclass
class Walk:
    """A profile function that notes the files of the functions on the way, until the loop begins.

    way: the file of each function on the way, in the order of first calls. to_weights, to_loop: how many of them
    came before the mark.
    """

    way: list[str] = field(default_factory=list)
    to_weights: int | None = None
    to_loop: int | None = None
    _read: set[CodeType] = field(default_factory=set)
    _importing: int = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if code.co_name == "<module>":
            self._importing += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not self._importing and self.to_loop is None:
            self._called(frame, code)

    def _called(self, frame: FrameType, code: CodeType) -> None:
        if code.co_name == "from_pretrained" and code.co_filename.endswith("modeling_utils.py"):
            self.to_weights = len(self.way) if self.to_weights is None else self.to_weights
        if not code.co_filename.startswith(PACKAGE) or code in self._read:
            return
        file = code.co_filename.removeprefix(PACKAGE)
        at_the_loop = (file, code.co_name) == ("loop.py", "distil")
        if at_the_loop or any(holds_settings(value) for value in arguments(frame, code)):
            self._read.add(code)
            self.way.append(file)
        if at_the_loop:
            self.to_loop = len(self.way)


def arguments(frame: FrameType, code: CodeType) -> list[object]:
    """Return what a function was called with, what it finds in the function around it left out."""
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [frame.f_locals.get(name) for name in names]


def holds_settings(value: object, depth: int = 2) -> bool:
    """Whether a value is the settings of a run, or a record of the package that leads to them."""
    if type(value).__name__ in SETTINGS:
        return True
    if not depth or not type(value).__module__.startswith("local_distill"):
        return False
    fields = getattr(value, "__dict__", {})
    return any(holds_settings(fields[name], depth - 1) for name in HOLDERS if name in fields)


def files_and_returns(way: list[str]) -> tuple[int, int]:
    """Count the files of a way, and the moves to one that was entered before."""
    moves = [file for file, _ in groupby(way)]
    return len(set(moves)), len(moves) - len(set(moves))


def save_pair(folder: Path) -> list[str]:
    """Write two tiny models with one tokenizer. Returns them as words of the command line."""
    bytes_as_text = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: i for i, letter in enumerate(["<end>", *bytes_as_text])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    for name, layers in (("student", 1), ("teacher", 2)):
        shape = LlamaConfig(
            vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
            eos_token_id=0, bos_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return ["--student_model", str(folder / "student"), "--teacher_model", str(folder / "teacher")]


def walk(folder: Path) -> Walk:
    """Train one step in ``folder`` and watch. Raises RuntimeError where the run did not come to its loop."""
    words, watching = [*save_pair(folder), *WORDS, "--output_dir", str(folder / "run")], Walk()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        sys.setprofile(watching)
        try:
            train(words)
        finally:
            sys.setprofile(None)
    if watching.to_weights is None or watching.to_loop is None:
        raise RuntimeError("the run ended before its loop; look at what the same command says")
    return watching


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="list the files as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = walk(Path(folder))
    for name, end in (("first weights", found.to_weights), ("first step of the loop", found.to_loop)):
        files, returns = files_and_returns(found.way[:end])
        print(f"to the {name:23} {files:3} files  {returns:3} returns")
    if args.files:
        print(*dict.fromkeys(found.way), sep="\n")


if __name__ == "__main__":
    main()
