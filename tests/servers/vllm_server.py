"""A real vLLM server on this machine's processor, which tests may kill."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
VLLM = ROOT / ".venv-vllm" / "bin" / "vllm"
MODEL = ROOT / "models" / "smollm2-135m-instruct"
START_LIMIT = 240.0
"""Seconds; on two cores it takes about 40."""
LOG_TAIL = 40


class VLLMServer:
    """One server process, always at the same address, so that clients find it again after a restart.

    It serves SmolLM2-135M-Instruct in bfloat16, takes LoRA adapters and whole sets of weights, and reports the
    log-probs of its draws. lora: whether it takes adapters; with them, vLLM's CPU build ends when it is asked for the
    log-probs of a prompt, so that a teacher wants a server without.
    """

    def __init__(self, log_path: Path, model_folder: Path = MODEL, *, lora: bool = True) -> None:
        self.model_folder = model_folder
        self.log_path = log_path
        self._lora = lora
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Start the process; ``wait``: until it answers."""
        arguments = [
            VLLM, "serve", self.model_folder, "--host", "127.0.0.1", "--port", self.port,
            "--served-model-name", "smollm2", "--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager",
            "--max-logprobs", "64", "--logprobs-mode", "processed_logprobs",
            *(["--enable-lora", "--max-lora-rank", "16"] if self._lora else []),
        ]  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "LOCAL_DISTILL"))}
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # whole sets of weights
            "VLLM_NO_USAGE_STATS": "1",
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in arguments], stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers. Raises with the end of its log when it ends instead, or takes too long."""
        assert self._process is not None
        end = time.monotonic() + START_LIMIT
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"vLLM ended with {self._process.returncode}:\n{self.log_tail()}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise RuntimeError(f"vLLM did not answer within {START_LIMIT:g} s:\n{self.log_tail()}")

    def kill(self) -> None:
        """As the machine would when it runs out of memory: at once, the engine's own process too."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill it and start it again at the same address."""
        self.kill()
        self.start()

    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LOG_TAIL:])


def _die_with_parent() -> None:
    """Linux: no server is left behind when the tests are killed."""
    PR_SET_PDEATHSIG = 1  # noqa: N806
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
