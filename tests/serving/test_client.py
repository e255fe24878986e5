"""The HTTP client: balanced, bounded, patient, and silent about its key."""

import logging
import socket
import threading
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial

import pytest

from local_distill.errors import UserError
from local_distill.serving.answers import BadAnswerError
from local_distill.serving.client import HttpClient, ServerError
from tests.serving.protocol_server import close_connection, serving, stall, status, text
from tests.tiny_models import llama_config, make_model, make_tokenizer

VARIABLE, KEY = "SOME_SERVER_KEY", "sk-do-not-show-this"
ASK = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 1, "prompt_logprobs": 0}
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def parts():
    return make_model(llama_config(layers=1)), make_tokenizer()


@contextmanager
def client(*urls, timeout=5.0, patience=5.0, concurrency=4, say=None):
    made = HttpClient(
        urls, flag="--some_url", key_variable=VARIABLE, timeout=timeout, patience=patience, concurrency=concurrency,
        say=say,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


def entries(answer):
    return answer["choices"][0]["prompt_logprobs"]


def free_url():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


FAILURES = {
    "429": status(429), "429 retry-after": status(429, Retry_After="0.5"), "408": status(408), "500": status(500),
    "503": status(503), "closed": close_connection, "stalled": stall(1.5),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_may_pass_is_tried_again_and_the_answer_is_right(parts, failure):
    with serving(*parts) as server, client(server.url, timeout=0.7) as http:
        right = http.post(PATH, ASK)
        server.failures += [failure, failure]
        assert http.post(PATH, ASK) == right
        assert len(server.scored) == 4


@pytest.mark.parametrize("asked", ["1.2", formatdate(time.time() + 3600, usegmt=True)], ids=["seconds", "date"])
def test_a_server_is_left_alone_for_as_long_as_it_asks_but_not_beyond_patience(parts, asked):
    with serving(*parts) as server, client(server.url, patience=1.5) as http:
        server.failures.append(status(429, Retry_After=asked))
        began = time.monotonic()
        http.post(PATH, ASK)
        assert 1.15 < time.monotonic() - began < 2.5


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_other_refusals_are_final_and_tell_what_the_server_said(parts, code):
    with serving(*parts) as server, client(server.url) as http:
        server.failures.append(status(code, message="max_tokens\nmust be " + "very " * 100))
        with pytest.raises(
            ServerError, match=rf"^--some_url {server.url}: {PATH} answered {code}: max_tokens must"
        ) as e:
            http.post(PATH, ASK)
        assert e.value.status == code
        assert len(server.scored) == 1
        assert "\n" not in str(e.value)
        assert len(str(e.value)) < 240 + 200


ERRORS = {
    "an error": ('{"error": {"message": "engine is dead", "code": 500}}', "answered with an error (engine is dead)"),
    "an error object": ('{"object": "error", "message": "out of blocks"}', "answered with an error (out of blocks)"),
    "an error in words": ('{"error": "model is loading"}', "answered with an error (model is loading)"),
    "too many": ('{"error": {"message": "slow down", "code": "429"}}', "answered with an error (slow down)"),
    "a web page": ("<html><title>502 Bad\ngateway</title>", "answered with what is not JSON: '<html>"),
    "nothing": ("", "answered with nothing"),
    "half of an answer": ('{"choices": [{"ind', 'answered with what is not JSON: \'{"choices": [{"ind\''),
}


@pytest.mark.parametrize("how", ERRORS)
def test_success_with_an_error_in_it_is_tried_again_and_told_in_the_servers_words(parts, how):
    body, said = ERRORS[how]
    with serving(*parts) as server, client(server.url) as http:
        right = http.post(PATH, ASK)
        server.failures += [text(body)] * 2
        assert http.post(PATH, ASK) == right
    with serving(*parts) as server, client(server.url, patience=0.1) as http:
        server.failures += [text(body)] * 9
        with pytest.raises(ServerError) as caught:
            http.post(PATH, ASK)
    assert str(caught.value).startswith(f"--some_url {server.url}: {said}")
    assert "asked again for 0.1 s; see the server's own log" in str(caught.value)


def test_a_mistake_that_is_told_with_success_is_final(parts):
    with serving(*parts) as server, client(server.url) as http:
        server.failures.append(text('{"object": "error", "message": "no such model", "code": 404}'))
        with pytest.raises(ServerError, match="no such model") as caught:
            http.post(PATH, ASK)
        assert caught.value.status == 404
        assert len(server.scored) == 1


def test_a_web_page_is_no_answer_though_its_status_is_success(parts):
    def page(handler):
        content = b"<!DOCTYPE html><html><title>Please\n log in</title>"
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with serving(*parts) as server, client(server.url, patience=0.1) as http:
        server.failures += [page] * 9
        with pytest.raises(ServerError, match=r"answered with a web page \(Please log in\)"):
            http.post(PATH, ASK)


def test_an_answer_that_is_not_what_was_asked_for_is_asked_for_again(parts):
    def read(answer):
        if answer.get("choices") == 3:
            raise BadAnswerError("a number of choices")
        return answer["choices"]

    with serving(*parts) as server, client(server.url) as http:
        server.failures += [text('{"choices": 3, "error": null}')] * 2
        assert len(http.post(PATH, ASK, read=read)) == 1
        assert len(server.scored) == 3


LOOPBACK = ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.1.2.3:1", "https://0.0.0.0:1")
NO_PROXIES = ("socks://127.0.0.1:1", "ftp://a:1", "http://", "http://[", "socks5://127.0.0.1:1", "a b", "http://a:port")


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("proxy", NO_PROXIES)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "https_proxy"])
def test_a_proxy_that_is_none_is_in_nobodys_way_unless_it_leads_to_a_server(monkeypatch, variable, proxy):
    monkeypatch.setenv(variable, proxy)
    with client(*LOOPBACK):
        pass
    url = f"{'https' if variable == 'https_proxy' else 'http'}://gpu-7:8000"
    said = rf"^{variable}: .* cannot be used as the proxy to {url} \(.*NO_PROXY$"
    with pytest.raises(UserError, match=said) as e, client(*LOOPBACK, url):
        pass
    assert "\n" not in str(e.value)
    monkeypatch.setenv("NO_PROXY", "gpu-7")
    with client(*LOOPBACK, url):
        pass


@pytest.mark.usefixtures("no_proxies")
def test_a_password_of_a_proxy_is_not_shown(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://me:secret@proxy:1")
    with pytest.raises(UserError, match="ALL_PROXY") as caught:
        client("http://gpu-7:8000").__enter__()
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_proxy_is_gone_through_where_one_leads_to_the_server(parts, monkeypatch, scheme):
    """The proxy here is a server that answers itself: it sees the whole address that was asked for."""
    with serving(*parts) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"{scheme}{proxy.url.removeprefix('http://')}")
        with client("http://gpu-7.invalid:8000", patience=0.1) as http, pytest.raises(ServerError, match="404"):
            http.post(PATH, ASK)
        assert proxy.requests[0][0] == f"http://gpu-7.invalid:8000{PATH}"
        with serving(*parts) as server, client(server.url) as http:
            http.post(PATH, ASK)
        assert len(proxy.requests) == 1


def test_patience_ends_with_flag_and_address():
    url = free_url()
    with client(url, patience=0.6) as http:
        began = time.monotonic()
        with pytest.raises(ServerError, match=rf"^--some_url {url}: {PATH} does not answer: .*refused.* 0.6 s") as e:
            http.post(PATH, ASK)
        assert 0.55 < time.monotonic() - began < 2.0
        assert e.value.status is None


def test_a_stalled_server_costs_its_time_out_and_then_patience(parts):
    with serving(*parts) as server, client(server.url, timeout=0.3, patience=0.4) as http:
        server.failures += [stall(3.0)] * 20
        began = time.monotonic()
        with pytest.raises(ServerError, match=r"no answer within 0\.3 s"):
            http.post(PATH, ASK)
        assert time.monotonic() - began < 2.5
        assert len(server.scored) >= 2, "one time-out is not the end, even if it lasted longer than patience"


def test_an_answer_that_never_ends_is_timed_out(parts):
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(30):  # each byte in time for the next
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    with serving(*parts) as server, client(server.url, timeout=0.5) as http:
        server.failures.append(drip)
        began = time.monotonic()
        assert len(entries(http.post(PATH, ASK))) == 3
        assert time.monotonic() - began < 2.0


def test_requests_are_shared_out_and_bounded(parts):
    with serving(*parts, slow=0.03) as one, serving(*parts, slow=0.03) as two:
        with client(one.url, two.url, concurrency=3) as http:
            asked = [http.in_background(partial(http.post, PATH, {**ASK, "prompt": [5, i]})) for i in range(24)]
            answers = [future.result(timeout=10) for future in asked]
        for i, answer in enumerate(answers):
            assert str(i) in entries(answer)[1], "each gets its own answer"
        assert abs(len(one.scored) - len(two.scored)) <= 4
        assert len(one.scored) + len(two.scored) == 24
        assert one.most_in_flight <= 2
        assert two.most_in_flight <= 2
    with serving(*parts, slow=0.03) as server, client(server.url, concurrency=3) as http:
        threads = [threading.Thread(target=http.post, args=(PATH, ASK)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_in_flight == 3


def test_the_least_busy_server_is_asked(parts):
    with serving(*parts, slow=0.6) as slow, serving(*parts, slow=0.01) as quick:
        with client(slow.url, quick.url, concurrency=4) as http:
            for future in [http.in_background(partial(http.post, PATH, ASK)) for _ in range(30)]:
                future.result(timeout=10)
        assert len(quick.scored) > 2 * len(slow.scored)


def test_one_lost_server_of_two_stops_nobody(parts):
    said = []
    with serving(*parts) as server, client(free_url(), server.url, patience=3, say=said.append) as http:
        began = time.monotonic()
        for _ in range(20):
            http.post(PATH, ASK)
        assert time.monotonic() - began < 2.0
    assert len(said) == 1, "one message for one loss"
    assert said[0].startswith(f"--some_url {http.urls[0]}: ")


def test_a_server_that_fails_is_spared_while_another_answers(parts):
    with serving(*parts) as failing, serving(*parts) as server, client(failing.url, server.url) as http:
        failing.failures += [status(503, Retry_After="5")] * 50
        for _ in range(20):
            http.post(PATH, ASK)
        assert len(failing.scored) == 1
        assert len(server.scored) == 20


def test_who_wants_to_know_of_a_loss_is_told_before_the_next_try(parts):
    told, said = [], []
    with serving(*parts) as server, client(server.url, say=said.append) as http:
        for failure, lost in ((close_connection, True), (status(500), True), (status(429), False)):
            told.clear()
            server.failures.append(failure)
            seen = len(server.scored)
            http.post(PATH, ASK, on_lost=lambda url, seen=seen: told.append((url, len(server.scored) - seen)))
            assert told == ([(server.url, 1)] if lost else [])
        server.failures.append(close_connection)
        http.in_background(partial(http.post, PATH, ASK, on_lost=told.append)).result(timeout=5)
        assert told == [server.url]
    assert [line.endswith("answers again") for line in said] == [False, True] * 3


def test_a_server_that_comes_back_completes_the_request(parts):
    said = []
    with serving(*parts) as server:
        port = server.server_port
        right = None
        with client(server.url, patience=10, say=said.append) as http:
            right = http.post(PATH, ASK)
            server.stop()
            waiting = http.in_background(partial(http.post, PATH, ASK))
            time.sleep(0.8)
            assert not waiting.done()
            with serving(*parts, port=port):
                assert waiting.result(timeout=10) == right
    assert said[-1].endswith("answers again")


def test_the_key_is_sent_and_never_shown(parts, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    said = []
    monkeypatch.setenv(VARIABLE, f" {KEY}\n")
    with serving(*parts, key=KEY) as server, client(server.url, patience=0.2, say=said.append) as http:
        http.post(PATH, ASK)
        assert server.keys == [f"Bearer {KEY}"]
        messages = []
        for failure in (status(500, message=f"bad key {KEY}"), status(400, message=f"bad key {KEY}")):
            server.failures += [failure] * 9
            with pytest.raises(ServerError, match=r"bad key \*\*\*") as e:
                http.post(PATH, ASK)
            server.failures.clear()
            messages.append(str(e.value))
        shown = " ".join([*messages, *said, caplog.text, repr(http.__dict__.get("_http"))])
    assert KEY not in shown
    monkeypatch.setenv(VARIABLE, "wrong")
    wrong_key = pytest.raises(ServerError, match=rf"answered 401: .*{VARIABLE}")
    with serving(*parts, key=KEY) as server, client(server.url) as http, wrong_key:
        http.get_from(server.url, "/v1/models")
    monkeypatch.setenv(VARIABLE, "ключ" + KEY)
    with pytest.raises(UserError, match=f"^{VARIABLE}: ") as e, client("http://h"):
        pass
    assert KEY not in str(e.value)


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ((), "no address"),
        (("localhost:8000",), "is no address"),
        (("http://",), "is no address"),
        (("http://h:port",), "is no address"),
        (("http://h:1", "http://h:1/v1"), "given twice"),
        (("http://user:word@h:1",), "password"),
    ],
)
def test_what_is_no_address_is_refused(urls, said):
    with pytest.raises(UserError, match=f"^--some_url: .*{said}") as e, client(*urls):
        pass
    assert "word@" not in str(e.value)


def test_addresses_are_tidied():
    with client(" http://h:1/v1/ ", "https://h/prefix/") as http:
        assert http.urls == ("http://h:1", "https://h/prefix")


def test_closing_gives_up_what_is_under_way(parts):
    with serving(*parts) as server, client(free_url(), patience=60, concurrency=1) as http:
        del server
        going, waiting = (http.in_background(partial(http.post, PATH, ASK)) for _ in range(2))
        time.sleep(0.1)
        http.close()
        with pytest.raises(ServerError, match="the run is over"):
            going.result(timeout=3)
        with pytest.raises(CancelledError):
            waiting.result(timeout=3)
