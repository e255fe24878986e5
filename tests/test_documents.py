"""What the documents say must be so."""

import re
from pathlib import Path

import pytest
import yaml

from local_distill import __version__
from local_distill.commands import COMMANDS, load
from local_distill.config.parsing import flags_of
from local_distill.config.train_config import parse_config
from scripts.write_flag_tables import TARGET, render

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_is_a_run_that_can_be_asked_for(path):
    config = parse_config(["--config", str(path)])
    assert config.student_model
    assert config.teacher_model or config.teacher_backend == "self"


def test_there_are_recipes_for_every_student_size_that_the_readme_advises_on():
    names = " ".join(path.name for path in EXAMPLES)
    assert all(size in names for size in ("1.7b", "4b", "8b"))
    assert all(machine in names for machine in ("2xa800", "4xa800"))


RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))


def test_the_page_of_recipes_has_all_of_them():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [path.name for path in RECIPES if f"(../examples/recipes/{path.name})" not in page] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_with_short_completions_turn_qwen3_s_thinking_off_or_say_what_it_does(path):
    config = parse_config(["--config", str(path)])
    if "Qwen3" in config.student_model and config.max_new_tokens < 4096:
        assert "enable_thinking: false" in path.read_text(encoding="utf-8")


def test_the_page_of_flags_is_up_to_date():
    assert TARGET.read_text(encoding="utf-8") == render(), "run: python scripts/write_flag_tables.py"


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_readmes_name_no_flag_that_is_not_there(readme):
    named = set(re.findall(r"--([a-z0-9_]+)", readme.read_text(encoding="utf-8")))
    launcher = {"config_file", "num_processes", "deepspeed_config_file", "use_deepspeed", "help", "config"}
    there = {flag.name for name in COMMANDS for flag in flags_of(load(name).settings)}
    assert named - there - launcher == set()


def test_the_two_readmes_hold_the_same_commands_and_headings():
    english, chinese = (readme.read_text(encoding="utf-8") for readme in READMES)

    def blocks(text):
        return [re.sub(r"#.*", "", block) for block in re.findall(r"```(?:bash|text)\n(.*?)```", text, re.S)]

    assert blocks(english) == blocks(chinese)
    assert len(re.findall(r"^#+ ", english, re.M)) == len(re.findall(r"^#+ ", chinese, re.M))


def test_the_two_readmes_hold_the_same_figures():
    english, chinese = (figures(readme.read_text(encoding="utf-8")) for readme in READMES)
    assert english - chinese == set(), "these are missing in Chinese"
    assert chinese - english == set(), "these are missing in English"


NUMBER, UNIT = r"(?<![\w.])(\d[\d,]*(?:\.\d+)*)", r"[ \n]?(%|[GMK]i?B\b|nats\b|tokens?/s\b|[BM]\b)"


def figures(text: str) -> set[str]:
    """Return the numbers that are written in digits, each with the unit that follows it, without code and addresses."""
    without = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|https?://\S+", " ", text, flags=re.S)
    ranges_apart = re.sub(rf"{NUMBER}(?=\s(?:to|and|or)\s(\d[\d,.]*){UNIT})", r"\1 \3", without)
    return {f"{number.replace(',', '')}{unit}" for number, unit in re.findall(f"{NUMBER}(?:{UNIT})?", ranges_apart)}


def test_figures_are_found():
    assert figures("fell from 3.14 to\n1.16 nats, 9 to 36 % of 1,024 (`--steps 7`), 1.7B 在 24 GB 上") == {
        "3.14nats", "1.16nats", "9%", "36%", "1024", "1.7B", "24GB",
    }  # fmt: skip


@pytest.mark.parametrize("page", [*READMES, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_inside_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_tree_of_the_architecture_page_has_every_file_and_folder_of_the_package():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page[page.index("    local_distill/\n") : page.index("    tests/")]
    named = set(re.findall(r"[\w/.]+(?:\.\w+|/)", tree))
    there = {f"{path.name}/" if path.is_dir() else path.name for path in (ROOT / "local_distill").iterdir()}
    assert {name for name in there if not name.startswith("__") and name != "py.typed"} <= named


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}] - {citation['date-released']}\n" in changes


WIDTH = 100
WRITTEN_BY_HAND = [
    path
    for path in (*READMES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.relative_to(ROOT).as_posix() not in ("docs/flags.md", "docs/models.md")  # programs write these
]


def prose(text: str) -> str:
    """Blank what no line may be broken in: code, tables, headings, HTML, images, link definitions."""
    kept = re.sub(r"^ *```.*?^ *```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
    return re.sub(r"^(?: {4,}| *(?:[|#<]|!\[|\[!\[|\[[^\]]+\]:)).*", "", kept, flags=re.M)


@pytest.mark.parametrize("page", WRITTEN_BY_HAND, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_prose_wraps_at_a_hundred_characters(page):
    lines = enumerate(prose(page.read_text(encoding="utf-8")).splitlines(), start=1)
    assert [number for number, line in lines if len(line) > WIDTH and " " in line.strip()] == []
