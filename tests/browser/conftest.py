"""A headless Chromium for the tests in this folder: make test-browser sees to it that there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from scripts.set_up_browser import find

UNPACKED = Path(os.environ.get("LOCAL_DISTILL_BROWSER", ".venv/browser"))


@pytest.fixture(scope="session")
def browser():
    """The browser, started; it may not use the network."""
    executable = find(UNPACKED)
    if executable is None:
        pytest.fail("no Chromium: run make test-browser")
    libraries = f"{UNPACKED.resolve() / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        started: Browser = playwright.chromium.launch(
            executable_path=executable, args=flags, env={**os.environ, "LD_LIBRARY_PATH": libraries}
        )
        yield started
        started.close()
