"""The findings at the top of docs/results.md: their pictures show the numbers that the tables give."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.plot_findings import PICTURES, main

DOCS = Path(__file__).parent.parent / "docs"
NUMBERS = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))


@pytest.fixture
def row():
    """The cells of a table's only row that begins so, without its bold marks."""

    def find(page, first):
        lines = (DOCS / page).read_text(encoding="utf-8").replace("**", "").splitlines()
        (line,) = [line for line in lines if line.startswith(f"| {first} |")]
        return [cell.strip() for cell in line.strip("|").split("|")][1:]

    return find


def with_errors(means, errors, form):
    return [form.format(mean, error) for mean, error in zip(means, errors, strict=True)]


def test_the_repair_is_that_of_its_table(row):
    repair = NUMBERS["repair"]
    cells = row("results.md", f"{repair['questions']} questions answered (greedy)")
    assert cells[:3] == with_errors(repair["answered"], repair["answered_error"], "{:.1f} % ± {:.1f}")
    cells = row("results.md", "loss on 96 unseen functions (nats/token of code)")
    assert cells[:3] == with_errors(repair["loss_on_functions"], repair["loss_on_functions_error"], "{:.2f} ± {:.2f}")
    lost, gone = (
        float(cell.split(" ± ")[0].replace("−", "-")) for cell in cells[3:]
    )  # repaired − drifted, repaired − original
    assert repair["learned_kept"] == [0, 100, round(100 * -gone / (lost - gone))]


@pytest.mark.parametrize("run", NUMBERS["losses"]["runs"], ids=lambda run: run["loss"])
def test_the_losses_are_those_of_their_table(row, run):
    assert row("results.md", run["loss"])[:4] == with_errors(run["mean"], run["error"], "{:.2f} ± {:.2f}")


def test_no_loss_of_the_table_is_left_out(row):
    assert NUMBERS["losses"]["steps"] == [int(re.sub(r"\D", "", cell)) for cell in row("results.md", "loss")[:4]]
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    table = text[text.index("| loss | 0 | 3 | 6 | 9 steps |") :].split("\n\n")[0]
    assert len(table.splitlines()) == len(NUMBERS["losses"]["runs"]) + 2


@pytest.mark.parametrize("pair", NUMBERS["against_trl"], ids=lambda pair: pair["row"])
def test_the_pairs_with_trl_are_those_of_the_benchmarks(pair):
    """The program's row and, right below, TRL's."""
    lines = (DOCS / "benchmarks.md").read_text(encoding="utf-8").replace("**", "").splitlines()
    ours, theirs = pair["tokens_per_second"]
    ratio = rf"{pair['ratio']:.2f} \("
    found = [
        i
        for i, line in enumerate(lines)
        if re.match(rf"\| {re.escape(pair['row'])} \| local-distill \| {ours} \|.*\| {ratio}", line)
    ]
    assert len(found) == 1
    assert lines[found[0] + 1].startswith(f"| | TRL | {theirs} |")


def drawn_from(picture):
    return json.loads(ElementTree.parse(picture).findtext(".//{http://purl.org/dc/elements/1.1/}description"))


def test_the_pictures_are_drawn_from_the_numbers_of_today(tmp_path):
    main(tmp_path)
    for name in PICTURES:
        picture = f"finding_{name}.svg"
        assert drawn_from(tmp_path / picture) == NUMBERS[name], "the script keeps them in the picture"
        assert drawn_from(DOCS / "images" / picture) == NUMBERS[name], "run: python scripts/plot_findings.py"
        assert f"](images/{picture})" in (DOCS / "results.md").read_text(encoding="utf-8")
