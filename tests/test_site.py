"""The documentation as a site: it builds with every link checked, and needs no network to be read."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("site"))


def build(root, target):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    done = subprocess.run(command, cwd=root, env={"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_every_page_is_there_in_both_languages(site):
    assert all((site / "zh" / f"{name}.html").is_file() for name in ("index", "quickstart", "extending", "faq"))
    sources = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert all((site / page).is_file() for page in sources)


def test_links_that_leave_the_docs_arrive_in_the_site(site):
    assert 'href="examples/pruned.yaml"' in (site / "results.html").read_text(encoding="utf-8")
    assert (site / "examples" / "pruned.yaml").read_bytes() == (ROOT / "examples" / "pruned.yaml").read_bytes()
    assert 'href="quickstart.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*\shref="([^"]+)"', text)
        assert not [url for pair in loaded for url in pair if re.match(r"(https?:)?//", url)], page


def test_broken_links_are_found(tmp_path):
    copy = tmp_path / "repository"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".*", "models", "runs", "build", "tests"))
    with (copy / "docs" / "faq.md").open("a", encoding="utf-8") as page:
        page.write("\n[a](nowhere.md) [b](method.md#no-such-heading) [c](../examples/nowhere.yaml)\n")
    with pytest.raises(AssertionError) as complaint:
        build(copy, tmp_path / "site")
    warnings = "".join(line for line in str(complaint.value).splitlines() if "WARNING" in line)
    assert all(link in warnings for link in ("nowhere.md", "#no-such-heading", "../examples/nowhere.yaml"))
