"""Whether the hub can be asked: seconds, not the half minute of its client."""

import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

from local_distill.errors import UserError
from local_distill.models import hub
from local_distill.models.adapters import open_adapter
from local_distill.models.hub import check_findable, why_unreachable
from local_distill.models.trained import open_trained

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def refusing():
    """A server that answers, with a refusal."""

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(hub, "is_offline", lambda: False)
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)


def test_any_answer_is_one(refusing):
    assert why_unreachable(refusing) == ""
    assert "refused" in why_unreachable(NOBODY)


def test_a_hub_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("httpx.head", lambda *_, **__: time.sleep(30))
    began = time.monotonic()
    assert why_unreachable(NOBODY, seconds=0.1) == "no answer in 0.1 s"
    assert time.monotonic() - began < 2


@pytest.mark.usefixtures("online")
def test_an_id_is_looked_for_in_the_cache_then_at_the_hub(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--student_model some/model: no folder .* does not answer .* HF_ENDPOINT"):
        check_findable("--student_model", "some/model")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: "/cache/config.json")
    check_findable("--student_model", "some/model")
    check_findable("--student_model", str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        check_findable("--student_model", "./nowhere")


@pytest.mark.usefixtures("online")
def test_whoever_may_be_an_adapter_is_looked_for_first_as_well():
    for find in (open_trained, lambda flag, path: open_adapter(path, flag)):
        with pytest.raises(UserError, match=r"^MODEL some/model: no folder .* does not answer .* HF_ENDPOINT"):
            find("MODEL", "some/model")


@pytest.mark.usefixtures("online")
def test_what_may_not_be_asked_or_is_no_id_is_left_to_the_library(monkeypatch):
    check_findable("--student_model", "a file:gguf?")
    monkeypatch.setattr(hub, "is_offline", lambda: True)
    check_findable("--student_model", "some/model")


def test_the_address_is_shown_without_its_password(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:secret@mirror.example")
    assert hub.endpoint() == "https://***@mirror.example"
