"""Requests that fail for a moment, for good, or while another server would answer; and the key, which nobody sees."""

import threading
import time

import pytest

from local_distill.errors import UserError
from local_distill.serving.client import HttpClient, ServerError
from tests.fake_vllm import FakeVLLM

KEY_VARIABLE = "LOCAL_DISTILL_TEST_KEY"


@pytest.fixture
def servers():
    made = [FakeVLLM(), FakeVLLM()]
    yield made
    for server in made:
        server.close()


@pytest.fixture
def connect(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    clients = []

    def to(*urls, **settings):
        settings = {"timeout": 5.0, "patience": 5.0, "concurrency": 4, **settings}
        clients.append(HttpClient(urls, flag="--some_url", key_variable=KEY_VARIABLE, **settings))
        return clients[-1]

    yield to
    for client in clients:
        client.close()


def failing(times, answer):
    """Fails the first requests in one way, then answers."""
    left = [times]

    def before(path, body):
        del path, body
        left[0] -= 1
        return answer if left[0] >= 0 else (200, {"fine": True})

    return before


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(servers, connect, status):
    servers[0].before = failing(2, (status, {"error": {"message": "later"}}))
    assert connect(servers[0].url).post("/x", {"a": 1}) == {"fine": True}
    assert [path for path, _ in servers[0].asked] == ["/x"] * 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_will_not_is_said_at_once_in_the_server_s_words(servers, connect, status):
    servers[0].before = failing(9, (status, {"error": {"message": "no\nsuch thing"}}))
    with pytest.raises(
        ServerError, match=rf"^--some_url {servers[0].url}: /x answered {status}: no such thing"
    ) as found:
        connect(servers[0].url).post("/x", {})
    assert found.value.status == status
    assert len(servers[0].asked) == 1


def test_patience_ends(servers, connect):
    servers[0].before = failing(10**6, (503, {}))
    start = time.monotonic()
    with pytest.raises(ServerError, match=r"^--some_url http://127.*cannot serve.*tried for 0\.5 s.*--server_patience"):
        connect(servers[0].url, patience=0.5).post("/x", {})
    assert 0.4 < time.monotonic() - start < 3


def test_a_server_that_stalls_is_given_up(servers, connect):
    servers[0].before = lambda *_: time.sleep(2)
    with pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
        connect(servers[0].url, timeout=0.2, patience=0.3).post("/x", {})


def test_nobody_there(connect):
    with pytest.raises(ServerError, match=r"^--some_url http://127\.0\.0\.1:9: /x does not answer"):
        connect("http://127.0.0.1:9", patience=0.3).post("/x", {})


def test_requests_are_shared_out_and_bounded(servers, connect):
    lock, busy, most = threading.Lock(), [0], [0]

    def slow(*_):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.02)
        with lock:
            busy[0] -= 1
        return 200, {}

    for server in servers:
        server.before = slow
    client = connect(*(server.url for server in servers), concurrency=3)
    for future in [client.submit("/x", {}) for _ in range(24)]:
        future.result()
    assert most[0] == 3
    assert [len(server.asked) for server in servers] == pytest.approx([12, 12], abs=3)


def test_another_server_takes_over_at_once(servers, connect):
    lost = []
    servers[0].before = failing(10**6, (500, {}))
    servers[1].before = lambda *_: (200, {"fine": True})
    client = connect(*(server.url for server in servers), patience=30.0)
    start = time.monotonic()
    assert [client.post("/x", {}, on_lost=lost.append) for _ in range(4)] == [{"fine": True}] * 4
    assert time.monotonic() - start < 2
    assert set(lost) == {servers[0].url}


def test_the_key_is_sent_and_never_shown(servers, connect, monkeypatch):
    client = connect(servers[0].url)
    client.close()
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret-123")
    servers[0].before = lambda *_: (400, {"error": {"message": "bad key sk-secret-123"}})
    with pytest.raises(ServerError) as found:
        HttpClient(
            [servers[0].url], flag="--some_url", key_variable=KEY_VARIABLE, timeout=5, patience=0, concurrency=1
        ).post("/x", {})
    assert "secret" not in str(found.value)
    assert "***" in str(found.value)


@pytest.mark.parametrize(
    "urls",
    [["ftp://host"], ["host:80"], ["http://"], ["http://a:x"], [], ["http://u:p@h"], ["http://a", "http://a/v1"]],
)
def test_addresses_that_are_none(urls, connect):
    with pytest.raises(UserError, match=r"^--some_url: ") as found:
        connect(*urls)
    assert "u:p" not in str(found.value)
