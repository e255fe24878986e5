"""A backend is found by its name, or named from outside; what leads to none is one line."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

import local_distill
from local_distill.config.builtin import BUILTIN_TEACHERS, NAMED_SOURCES
from local_distill.config.lookup import LOSSES, SAMPLERS, SOURCES, TEACHERS
from local_distill.config.train_fields import recorded_loss
from local_distill.errors import UserError


@pytest.mark.parametrize("registry", [LOSSES, SAMPLERS, SOURCES, TEACHERS])
def test_every_built_in_name_has_its_record(registry):
    checks = [registry.get(name).check for name in registry.names]
    assert all(check is None or callable(check) for check in checks)


def test_what_teachers_give_is_what_their_records_say():
    assert all(TEACHERS.get(name).gives == row.gives for name, row in BUILTIN_TEACHERS.items())


def test_teachers_without_a_name_are_spoken_of_as_their_records_say():
    unnamed = SimpleNamespace(teacher_model="", teacher_url="")
    said = {name: TEACHERS.get(name).words(unnamed) for name in TEACHERS.names}
    nameless = {name: words for name, words in said.items() if words and " at " not in words}
    assert nameless == {name: row.words for name, row in BUILTIN_TEACHERS.items() if row.words}


def test_no_file_compares_the_name_of_a_source():
    package = Path(local_distill.__file__).parent
    for file in package.rglob("*.py"):
        compared = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Compare)]
        words = {part.value for node in compared for part in ast.walk(node) if isinstance(part, ast.Constant)}
        assert not words & NAMED_SOURCES.keys(), file


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "lokal",
            r": unknown; needs one of local, zero3, server, self, or package.module:name; did you mean local\?$",
        ),
        (
            "no_such_module:NAME",
            r"^--teacher_backend no_such_module:NAME: .* cannot be imported \(No module",
        ),
        ("own:NOTHING", r"^--teacher_backend own:NOTHING: own has no NOTHING; look at its spelling"),
        ("own:NUMBER", r"^--teacher_backend own:NUMBER: a int, needs to be a TeacherBackend \(docs/extending.md\)"),
        ("own:Kind", r"^--teacher_backend own:Kind: a class, needs to be a TeacherBackend"),
        (
            "broken:NAME",
            r": broken cannot be imported \(.*has no attribute 'nothing'.*\)",
        ),
    ],
)
def test_a_name_that_leads_to_no_record_is_one_line(name, line, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("NUMBER = 1\n\n\nclass Kind: ...\n")
    (tmp_path / "broken.py").write_text("import math\n\nmath.nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("own", "broken"):
        monkeypatch.delitem(__import__("sys").modules, module, raising=False)
    with pytest.raises(UserError, match=line) as raised:
        TEACHERS.get(name)
    assert "\n" not in str(raised.value)


def test_the_loss_of_a_run_is_read_without_its_teacher():
    """A run may be reported where the module of its teacher is not."""
    assert recorded_loss({"loss": "auto", "teacher_backend": "elsewhere:TEACHER"}) == "auto"
    assert recorded_loss({"loss": "auto", "teacher_backend": "server"}) == "auto (reverse_kl, 64 top tokens)"
