"""The page of a run that goes on, asked for as a browser does, and as it must not."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest

from local_distill.commands import main
from local_distill.commands.watch import ssh_line
from local_distill.report.reading import named
from local_distill.report.serving import open_server
from tests.report.runs import ATTACK, write_run

ROOT = Path(__file__).parents[2]


class Watched:
    """A server, and answers of it."""

    def __init__(self, server):
        self.port = server.port

    def ask(self, path, host=None, method="GET", **headers):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, headers={"Host": host or f"127.0.0.1:{self.port}", **headers})
        answer = connection.getresponse()
        text = answer.read().decode() if answer.headers["Content-Encoding"] is None else ""
        connection.close()
        return answer, text

    def changes(self, versions):
        return json.loads(self.ask(f"/changes?{urlencode(versions)}")[1])


@pytest.fixture
def watch():
    """``watch(folder, …) -> Watched``"""
    servers = []

    def start(*folders):
        server = open_server(named([str(folder) for folder in folders]), 0)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return Watched(server)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_page_is_that_of_the_report_and_asks_its_own_server_alone(tmp_path, watch):
    folder = write_run(tmp_path / "run")
    answer, page = watch(folder).ask("/")
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert main(["report", str(folder)]) == 0
    report = (folder / "report.html").read_text()
    body = [part[part.index("<header") : part.index("<script id=")] for part in (page, report)]
    assert body[0] == body[1]
    assert "connect-src 'self';" in html.unescape(page)
    assert "connect-src" not in report
    assert "fetch(" not in report


def test_only_the_parts_that_are_others_by_now_are_sent(tmp_path, watch):
    folder = write_run(tmp_path / "run")
    served = watch(folder)
    everything = served.changes({})
    assert set(everything["markup"]) == {"outcome", "tokens", "completions", "settings"}
    assert set(everything["json"]) == {"curves", "evaluations"}
    assert set(everything["versions"]) == {*everything["markup"], *everything["json"]}
    versions = everything["versions"]
    nothing = served.changes(versions)
    assert (nothing["versions"], nothing["markup"], nothing["json"]) == ({}, {}, {})
    assert nothing["goes_on"] is False
    assert 0 <= nothing["age"] < 60
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.25, "tokens": 7}\n')
    some = served.changes(versions)
    assert set(some["versions"]) == {"outcome", "curves"}
    assert some["json"]["curves"]["runs"][0]["train"]["loss"][-1] == 0.25
    assert ATTACK not in some["markup"]["outcome"]


def test_a_run_that_has_not_begun_has_a_page(tmp_path, watch):
    served = watch(tmp_path / "run", tmp_path / "other")
    assert served.ask("/")[1].count("not begun yet") == 2
    assert served.changes({})["age"] is None


@pytest.mark.parametrize(
    "path", ["/metrics.jsonl", "/config.yaml", "/../config.yaml", "/%2e%2e/x", "//etc/passwd", "/run"]
)
def test_nothing_but_the_page_is_served(tmp_path, watch, path):
    answer, text = watch(write_run(tmp_path / "run")).ask(path)
    assert answer.status == 404
    assert text == "nothing here; the page is /"


def test_other_names_of_this_machine_are_refused(tmp_path, watch):
    served = watch(write_run(tmp_path / "run"))
    for host in ("evil.example", f"evil.example:{served.port}", "127.0.0.1.evil.example", "localhost.evil.example:80"):
        for path in ("/", "/changes"):
            answer, text = served.ask(path, host=host)
            assert answer.status == 403
            assert "run" not in text
    for host in ("localhost", "localhost:9999", "127.0.0.1", "[::1]:80"):  # 9999: the other end of a tunnel
        assert served.ask("/", host=host)[0].status == 200
    assert served.ask("/", method="POST")[0].status == 501


def test_a_head_has_no_body_and_a_browser_gets_less_to_carry(tmp_path, watch):
    served = watch(write_run(tmp_path / "run", steps=30, tokens=50))
    assert served.ask("/", method="HEAD")[1] == ""
    plain = int(served.ask("/")[0].headers["Content-Length"])
    zipped = served.ask("/", **{"Accept-Encoding": "gzip, br"})[0]
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert int(zipped.headers["Content-Length"]) < plain / 2


def test_mistakes_are_told_in_one_line(tmp_path, capsys):
    folder = str(write_run(tmp_path / "run"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for words, said in [
            ([folder, "--port", port], f"--port {port}: in use by another program; give another"),
            ([folder, "--port", "70000"], "--port 70000: not a port"),
            ([folder, folder], "given twice"),
            ([str(tmp_path)], "no metrics.jsonl in it"),
        ]:
            assert main(["watch", *words]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert said in line


def test_ctrl_c_ends_it_quietly(tmp_path):
    words = [sys.executable, "-m", "local_distill", "watch", str(tmp_path / "next"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SSH_CONNECTION": "10.0.0.1 5 10.0.0.2 22", "USER": "me"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, **pipes) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert "next: not there yet" in lines[0]
    port = re.match(r"http://127.0.0.1:(\d+)/ ", lines[1])[1]
    assert lines[2].endswith(f"ssh -N -L {port}:127.0.0.1:{port} me@10.0.0.2\n")
    assert (process.returncode, out.strip(), err) == (0, "", "")


def test_the_tunnel_takes_the_port_of_the_session():
    assert ssh_line({"SSH_CONNECTION": "1.2.3.4 5 fe80::1 2222", "USER": "me"}, 8765) == (
        "ssh -N -L 8765:127.0.0.1:8765 -p 2222 me@fe80::1"
    )
    assert ssh_line({}, 8765) == ""
