"""Real vLLM servers for the tests in this folder."""

from __future__ import annotations

import pytest

from tests.servers.vllm_server import MODEL, VLLM, VLLMServer


def running(server):
    """The server, started; killed at the end, whatever happens."""
    for needed in (VLLM, MODEL):
        if not needed.exists():
            pytest.fail(f"{needed} is not there: run make test-servers")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory):
    """A running VLLMServer that samples. A test that kills it starts it again."""
    yield from running(VLLMServer(tmp_path_factory.mktemp("vllm") / "server.log"))


@pytest.fixture(scope="module")
def teacher_server(tmp_path_factory):
    """The same without adapters, which alone can score."""
    yield from running(VLLMServer(tmp_path_factory.mktemp("teacher") / "server.log", lora=False))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """A failed test shows the end of the server's log."""
    report = (yield).get_result()
    for server in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(server, VLLMServer):
            report.sections.append(("vLLM's log", server.log_tail()))
