"""mkdocs: files of the repository that the site shows beside docs/, and the links to them.

The READMEs are the home pages; whatever else a page links to outside docs/ (examples, scripts) comes along as a file.
So links are written as they work in the repository, and mkdocs checks them all.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "README.zh-CN.md": "zh/index.md", "examples/recipes": "recipes.md"}
"""Where the site has what has another place in the repository."""
IN_NAVIGATION = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and, from page to page, what is linked to there."""
    for path in IN_NAVIGATION:
        files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    pages = list(files.documentation_pages())
    while pages:
        for path in sorted(linked_files(pages.pop())):
            if files.get_file_from_path(site_path(path)) is None:
                added = File.generated(config, site_path(path), abs_src_path=str(ROOT / path))
                added.inclusion = InclusionLevel.NOT_IN_NAV
                files.append(added)
                pages += [added] if added.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page, with links that lead to where the site has their targets; others are left for mkdocs to complain of."""
    del config
    here = page.file.src_uri

    def turn(link: re.Match[str]) -> str:
        target = site_path(repository_path(here, link[1]))
        if files.get_file_from_path(target) is None:
            return link[0]
        return f"]({posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[2] or ''})"

    return LINK.sub(turn, markdown)


def linked_files(page: File) -> set[str]:
    """Files of the repository that the page links to."""
    targets = {repository_path(page.src_uri, link[1]) for link in LINK.finditer(page.content_string)}
    return {target for target in targets if (ROOT / target).is_file()}


def repository_path(page: str, link: str) -> str:
    """Where in the repository a link leads that stands on a page of the site; a folder with a README is that."""
    source = next((path for path, place in PAGES.items() if place == page and (ROOT / path).is_file()), page)
    if (ROOT / "docs" / page).is_file():
        source = f"docs/{page}"
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return f"{target}/README.md" if (ROOT / target / "README.md").is_file() else target


def site_path(path: str) -> str:
    """Where the site has a file of the repository."""
    return PAGES.get(path, path.removeprefix("docs/"))
