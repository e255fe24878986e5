"""Finished runs with one file that is not what it was; every command that reads runs is tried on each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.processes import Ended
from tests.faults.site import Site

DONE = 2
Damage = Callable[[Path], object]


def flip(file: Path) -> None:
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def folder_instead(file: Path) -> None:
    """A folder of the same name."""
    file.unlink()
    file.mkdir()


def line_in_the_middle(text: str) -> Damage:
    """A line more, after the first."""

    def damage(file: Path) -> None:
        first, *rest = file.read_text().split("\n")
        file.write_text("\n".join([first, text, *rest]))

    return damage


DAMAGE: dict[str, Damage] = {
    "a folder instead": folder_instead,
    "emptied": lambda file: file.write_bytes(b""),
    "cut to half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "a bit flipped": flip,
    "noise": lambda file: file.write_bytes(bytes(range(256)) * 4),
    "gone": Path.unlink,
}
IN_RECORDS: dict[str, Damage] = {
    text: line_in_the_middle(text)
    for text in ('{"step": 1, "lo', '{"step": "x"}', "[1]", '{"step": 1, "completions": 3}', '{"step": 1, "loss": []}')
}
FILES = (
    "metrics.jsonl", "completions.jsonl", "config.yaml", "environment.json", "summary.json",
    *(f"step-{DONE}/{name}" for name in (
        "model.safetensors", "config.json", "tokenizer.json", "manifest.json", "trainer/state.json",
        "trainer/optimizer.safetensors",
    )),
)  # fmt: skip
RECORDS = FILES[:2]


def damaged_files(site: Site) -> None:
    """Each file in each way; nothing may end in a traceback, and no damaged weights may be used in silence."""
    run = site.new()
    assert site.train(run, steps=DONE).wait().code == 0
    for file in FILES:
        for how, damage in {**DAMAGE, **(IN_RECORDS if file in RECORDS else {})}.items():
            copy = site.new()
            shutil.copytree(run, copy)
            damage(copy / file)
            for words in _commands(file, copy):
                ended = _run(site, copy, words)
                _count(site, file, f"{how}, {words[0]}", ended)
            shutil.rmtree(copy.parent)


def _commands(file: str, run: Path) -> list[list[str]]:
    """Those that read this file. train: to go on."""
    of_records = [["report", str(run)], ["export", str(run), "--step", "best", "--output_dir", str(run.parent / "out")]]
    of_models = [["chat", str(run)], ["export", str(run), "--output_dir", str(run.parent / "out2")]]
    return [*(of_models if file.startswith("step-") else of_records), ["train"]]


def _run(site: Site, run: Path, words: list[str]) -> Ended:
    if words == ["train"]:
        return site.train(run, "--resume", steps=DONE + 1).wait()
    return site.command(run, *words)


def _count(site: Site, file: str, how: str, ended: Ended) -> None:
    right = ended.in_one_line or (ended.code == 0 and not ended.tracebacks)
    weights = file.startswith("step-") and "trainer" not in file and not how.endswith("train")
    if weights and ended.code == 0 and "gone" not in how:  # damaged weights, used
        right = False
    site.tally.add(
        f"{'checkpoint' if file.startswith('step-') else 'records'} damaged", f"{file} {how}: {ended.err[-900:]}",
        faults=1, went_on=ended.code == 0, one_line=ended.in_one_line, tracebacks=ended.tracebacks, otherwise=not right,
    )  # fmt: skip
