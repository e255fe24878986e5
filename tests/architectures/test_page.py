"""docs/models.md has a line for each architecture that is tried; what the lines say is for make test-models."""

from tests.architectures.sweep import FAILS, INTRODUCTION, PAGE, rows_of_page
from tests.architectures.zoo import ARCHITECTURES


def test_the_page_has_a_line_for_each_architecture_and_none_that_fails():
    assert PAGE.read_text(encoding="utf-8").startswith(INTRODUCTION)
    rows = rows_of_page()
    assert list(rows) == list(ARCHITECTURES)
    for name, row in rows.items():
        assert f"`{ARCHITECTURES[name][0]}`" in row
        assert f"| {FAILS}" not in row
