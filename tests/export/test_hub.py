"""Pushing, against a server on this machine that speaks what the hub's client asks for."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, constants

from local_distill.errors import UserError
from local_distill.export.hub import check_hub, push

TOKEN = "hf_secretOfThisTest"


class Hub(BaseHTTPRequestHandler):
    """Accounts, repositories, and commits of small and of large files."""

    def _answer(self, content, code=200):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self):
        self.server.asked.append(self.path)
        if not self._known():
            return self._answer({"error": "Invalid username or password."}, 401)
        return self._answer({"name": "me", "type": "user", "auth": {}, "id": "1", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        self.server.asked.append(self.path)
        body, here = self._body(), f"http://127.0.0.1:{self.server.server_port}"
        if self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            return self._answer({"url": f"{here}/me/model", "name": "me/model"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            for each in files:
                large = each["path"].endswith(".safetensors")
                each |= {"shouldIgnore": False, "uploadMode": "lfs" if large else "regular"}
            return self._answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            found = [
                {**each, "actions": {"upload": {"href": f"{here}/upload/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": found})
        if "/commit/" in self.path:
            self.server.commit = [json.loads(line) for line in body.splitlines()]
            return self._answer({"commitUrl": f"{here}/me/model/commit/1", "commitOid": "1", "success": True})
        return self._answer({})

    def do_PUT(self):
        self.server.asked.append(self.path)
        self.server.uploaded[self.path.rsplit("/", 1)[-1]] = self._body()
        self._answer({})

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.uploaded, server.created, server.commit = [], {}, None, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


def client(server, token=TOKEN):
    return HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=token)


def test_every_file_arrives(hub, tmp_path, capfd):
    (tmp_path / "README.md").write_text("# A card\n")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    check_hub("me/model", client(hub))
    assert hub.created is None, "only looked at"
    address = push(tmp_path, "me/model", True, client(hub))
    assert address.endswith("/me/model")
    assert (hub.created["name"], hub.created["organization"], hub.created["visibility"]) == (
        "model",
        "me",
        "private",
    )
    files = {each["value"]["path"]: each["value"] for each in hub.commit if each["key"] in ("file", "lfsFile")}
    assert files.keys() == {"README.md", "model.safetensors"}
    assert base64.b64decode(files["README.md"]["content"]) == b"# A card\n"
    assert hub.uploaded[files["model.safetensors"]["oid"]] == b"weights"
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_token_that_is_refused_is_told_without_it(hub):
    with pytest.raises(UserError, match=r"^--push_to_hub me/model: .*check the name, the token's rights") as error:
        check_hub("me/model", client(hub, token="hf_wrongSecret"))
    assert "hf_wrongSecret" not in str(error.value)


def test_nobody_logged_in(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="nobody is logged in; hf auth login, or set HF_TOKEN"):
        check_hub("me/model", client(hub, token=None))
    assert hub.asked == []


def test_nothing_leaves_the_machine_unasked(hub, folders, tmp_path):
    from local_distill.export.export_config import ExportSettings
    from local_distill.export.export_model import export

    export(ExportSettings(run=str(folders["student"]), output_dir=str(tmp_path / "out")), print, client(hub))
    assert hub.asked == []
    export(
        ExportSettings(run=str(folders["student"]), output_dir=str(tmp_path / "two"), push_to_hub="me/model"),
        print,
        client(hub),
    )
    assert hub.commit is not None
