"""The student's newest weights are sent to the servers that sample for it.

Weights go by way of a folder that the servers can read: the same machine, or a shared disk. Each version of them has a
name of its own, so that a server which was restarted is known by what it lacks, and is given the last version again
before it is asked for anything.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from local_distill.errors import RunError
from local_distill.models.files import causal_lm, precision_of
from local_distill.runs.whole_files import readable_as_others, writing
from local_distill.serving.answers import member, model_cards
from local_distill.serving.client import HttpClient, ServerError

AS_STARTED = "default"
"""What vLLM calls the weights that it was started with."""
OnMain = Callable[[Callable[[], None]], None]
"""Runs something on the main process alone and waits for it on all, raising there what it raised; collective."""


class Publisher:
    """Servers sample from weights: as such those that they were started with, which nothing changes.

    served_model: the name to ask a server for. salt: what keeps a server from using the keys and values of other
    weights, for no others have it. Both are those of the weights that were published last.
    """

    def __init__(self, served_model: str) -> None:
        self.served_model = served_model
        self.salt = secrets.token_hex(8)

    def drawing(self) -> AbstractContextManager[None]:
        """Return a context in which the weights stay as they are."""
        return nullcontext()

    def publish(self) -> bool:
        """Send the newest weights to every server; whether there were any. Collective."""
        return False

    def again(self, url: str) -> None:
        """Send what was published last to a server that does not have it."""

    def look(self) -> None:
        """Give what was published last, just before a request, to a server that would answer from other weights."""


def fresh_folder(parent: Path) -> Path:
    """Make a new folder under ``parent`` for a run's weights: a server knows weights by their path, so none returns."""
    folder = parent.resolve() / secrets.token_hex(4)
    with writing(folder):
        folder.mkdir(parents=True)
    return folder


class Gate:
    """Draws go on side by side; a change of the weights waits for them, and they for it."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._draws = 0
        self._changing = False

    @contextmanager
    def drawing(self) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: not self._changing)
            self._draws += 1
        try:
            yield
        finally:
            with self._turn:
                self._draws -= 1
                self._turn.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        with self._turn:
            self._turn.wait_for(lambda: not self._changing)
            self._changing = True  # draws that come from here on wait
            self._turn.wait_for(lambda: self._draws == 0)
        try:
            yield
        finally:
            with self._turn:
                self._changing = False
                self._turn.notify_all()


class _ThroughFolder(Publisher):
    """Both publishers share when to send, to whom, and that it is whole.

    client: the servers. version: tells how often the student's weights were updated. folder: of this run alone, the
    same on every process, readable by the servers; see ``fresh_folder``. on_main: see OnMain. barrier: waits for all
    processes. model: the transformers (or peft) model, unwrapped. base: the name under which servers serve its base.
    """

    def __init__(
        self, client: HttpClient, version: Callable[[], int], folder: Path, on_main: OnMain,
        barrier: Callable[[], None], *, model: nn.Module, base: str = "",
    ) -> None:  # fmt: skip
        super().__init__(base)
        self._client = client
        self._newest = version
        self._folder = folder
        self._on_main = on_main
        self._barrier = barrier
        self._model = model
        self._gate = Gate()
        self._published: int | None = None
        self._repairing = threading.Lock()

    def drawing(self) -> AbstractContextManager[None]:
        return self._gate.drawing()

    def publish(self) -> bool:
        """Send them, see Publisher. Raises RunError when a server does not take them."""
        newest, last = self._newest(), self._published
        if newest == last:
            return False
        with self._gate.changing():
            self._barrier()  # other processes draw from the same servers

            def send() -> None:
                path = self._path(newest)
                with writing(path):
                    self._write(path)
                readable_as_others(path)
                for url in self._client.urls:
                    self._send(url, newest, last)
                if last is not None:
                    with writing(self._folder):
                        shutil.rmtree(self._path(last))

            self._on_main(send)
            self._published, self.salt, self.served_model = newest, self._label(newest), self._name(newest)
        return True

    def again(self, url: str) -> None:
        """Send them again, see Publisher; waits for the server as long as the client has patience. From any thread."""
        with self._repairing:  # many requests find out at the same time
            if self._published is not None and not self._is_there(url):
                self._send(url, self._published, None)

    def _path(self, version: int) -> Path:
        return self._folder / str(version)

    def _label(self, version: int) -> str:
        return f"{self._folder.name}-{version}"

    def _name(self, version: int) -> str:
        """Return the name under which servers serve a version of the weights."""
        del version
        return self.served_model

    def _write(self, path: Path) -> None:
        """Write the weights that the student computes with now: every process has them whole, none is gathered."""
        raise NotImplementedError

    def _send(self, url: str, version: int, last: int | None) -> None:
        """Make the server at ``url`` use what was written. last: the version that it had from us before."""
        raise NotImplementedError

    def _is_there(self, url: str) -> bool:
        raise NotImplementedError


class AdapterPublisher(_ThroughFolder):
    """A LoRA adapter is loaded beside the base weights that the server was started with.

    Each version is loaded under a name of its own, which a server without it says that it lacks: there is nothing to
    ``look`` for. (vLLM can also load it in place of the last, but goes on to read such an adapter from the disk at
    every token.)
    """

    def _name(self, version: int) -> str:
        return f"student-{self._label(version)}"

    def _write(self, path: Path) -> None:
        self._model.save_pretrained(path)  # type: ignore[operator]

    def _send(self, url: str, version: int, last: int | None) -> None:
        name, path = self._name(version), self._path(version)
        try:
            self._client.post_to(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        except ServerError as error:
            if error.status == 400 and self._knows(url, name):
                return  # loaded before: the first answer was lost, or another process was quicker
            if error.status is None:
                raise
            raise RunError(
                f"{error}; it must be started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and a "
                f"--max-lora-rank that is large enough, and read {path}"
            ) from error
        if last is not None and self._knows(url, self._name(last)):
            self._client.post_to(url, "/v1/unload_lora_adapter", {"lora_name": self._name(last)})

    def _is_there(self, url: str) -> bool:
        return self._knows(url, self.served_model)

    def _knows(self, url: str, name: str) -> bool:
        listed = self._client.get_from(url, "/v1/models", read=partial(member, "data"))
        return any(card["id"] == name for card in model_cards({"data": listed}))


class WeightsPublisher(_ThroughFolder):
    """All weights are read by the server over those that it has; it must be in vLLM's developer mode.

    dtype: in which they are written, best the server's.
    """

    def __init__(
        self, client: HttpClient, version: Callable[[], int], folder: Path, on_main: OnMain,
        barrier: Callable[[], None], *, model: nn.Module, base: str, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__(client, version, folder, on_main, barrier, model=model, base=base)
        self._dtype = dtype

    def look(self) -> None:
        """Look on every server: it answers from whatever it has. No restart fits between this look and the request."""
        for url in self._client.urls:
            self.again(url)

    def _write(self, path: Path) -> None:
        weights = self._in_precision(self._model.state_dict())
        self._model.save_pretrained(path, state_dict=weights)  # type: ignore[operator]

    def _in_precision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights on the CPU; those that are one tensor under two names stay so."""
        made: dict[tuple[int, torch.Size], Tensor] = {}
        network = causal_lm(self._model)
        result = {}
        for name, tensor in state.items():
            key = (tensor.data_ptr(), tensor.shape)
            if key not in made:
                made[key] = tensor.detach().to("cpu", precision_of(network, name, tensor, self._dtype))
            result[name] = made[key]
        return result

    def _send(self, url: str, version: int, last: int | None) -> None:
        del last
        path = self._path(version)
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
        try:
            self._client.post_to(url, "/collective_rpc", reload)
            # Keys and values of the old weights are kept out by the salt of each request.
            self._client.post_to(url, "/update_weight_version", {"new_version": self._label(version)})
        except ServerError as error:
            if error.status is None:
                raise
            raise RunError(
                f"{error}; to take all weights it must be vLLM 0.32 or newer, be started with VLLM_SERVER_DEV_MODE=1, "
                f"and read {path}"
            ) from error

    def _is_there(self, url: str) -> bool:
        found = self._client.get_from(url, "/weight_info", read=partial(member, "weight_version"))
        if found not in (self.salt, AS_STARTED):
            raise RunError(
                f"--rollouts_url {url}: has other weights than this run gave it ({found}); let no other run use it"
            )
        return bool(found != AS_STARTED)
