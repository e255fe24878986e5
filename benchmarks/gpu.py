"""All benchmarks that a machine with a GPU is asked for, in one command of less than ten minutes, without a network.

    make bench-gpu                                  # or: python benchmarks/gpu.py --output bench-gpu
    python benchmarks/gpu.py --tiny                 # that it runs, anywhere

Needs torch, transformers, accelerate and peft, and no weights. Writes OUTPUT.json and OUTPUT.md: the machine, the
versions, and each command with what it printed and how long it took. A command that fails or takes too long is in
them as well, with its last words, and the others go on.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
COMMANDS = (
    "phases.py",
    "phases.py --group 8 --prompt 512 --tokens 128",
    "phases.py --loss policy_gradient",
    "head.py --dtype bf16 --tokens 8192 --hidden 4096 --repeats 5 --rounds 1",
    "head.py --dtype bf16 --tokens 32768 --hidden 4096 --repeats 5 --rounds 1 --only ours",
)
TINY = (
    "phases.py --student tiny --teacher tiny --batch 4 --group 2 --prompt 16 --tokens 4 --steps 1",
    "head.py --tokens 8 --hidden 8 --vocab 64 --rounds 1 --only ours",
)
PACKAGES = ("torch", "transformers", "accelerate", "peft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bench-gpu"), help="without the ending")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it; what does not fit is left out")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    results: list[dict[str, Any]] = []
    for command in TINY if args.tiny else COMMANDS:
        results.append(measure(command, end - time.monotonic()))
        args.output.with_suffix(".json").write_text(json.dumps({**machine(), "results": results}, indent=1))
        args.output.with_suffix(".md").write_text(page(results))
        print(f"{command}: {results[-1]['outcome']}, {results[-1]['seconds']:.0f} s", flush=True)


def measure(command: str, seconds: float) -> dict[str, Any]:
    """Run one of the commands beside this file. seconds: what is left."""
    if seconds < 1:
        return {"command": command, "outcome": "no time left", "seconds": 0.0, "output": ""}
    name, *more = command.split()
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / name), *more], cwd=HERE.parent, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=seconds,
        )  # fmt: skip
        outcome, output = "done" if done.returncode == 0 else f"exit code {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as error:
        outcome, output = "took too long", (error.stdout or b"").decode(errors="replace")
    return {"command": command, "outcome": outcome, "seconds": time.monotonic() - start, "output": output[-4000:]}


def machine() -> dict[str, Any]:
    """What the numbers were taken on, and when."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "driver": torch.version.cuda or platform.processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def page(results: list[dict[str, Any]]) -> str:
    """The same for people."""
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in machine().items())]
    for result in results:
        lines += ["", f"`python benchmarks/{result['command']}`: {result['outcome']}, {result['seconds']:.0f} s", ""]
        lines += [f"    {line}".rstrip() for line in result["output"].splitlines()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
