"""One real vLLM server for all tests in this folder."""

from __future__ import annotations

import pytest

from tests.servers.vllm_server import MODEL, VLLM, VLLMServer


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory):
    """A running VLLMServer. A test that kills it starts it again."""
    for needed in (VLLM, MODEL):
        if not needed.exists():
            pytest.fail(f"{needed} is not there: run make test-servers")
    server = VLLMServer(tmp_path_factory.mktemp("vllm") / "server.log")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """A failed test shows the end of the server's log."""
    report = (yield).get_result()
    server = item.funcargs.get("vllm_server") if hasattr(item, "funcargs") else None
    if report.failed and server is not None:
        report.sections.append(("vLLM's log", server.log_tail()))
