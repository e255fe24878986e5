"""The benchmarks for a GPU in their smallest shape: they run, and what they print is kept with the machine it is of."""

import json
import subprocess
import sys

from tests.launching import ROOT, environment


def test_every_command_runs_and_is_written_down(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--output", str(tmp_path / "bench")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {"date", "device", "torch", "transformers"} < found.keys()
    assert [each["outcome"] for each in found["results"]] == ["done", "done"], found["results"]
    phases, head = (each["output"] for each in found["results"])
    assert [line.split()[0] for line in phases.splitlines()[-5:]] == [
        "sampling",
        "scoring",
        "training",
        "step",
        "plain",
    ]
    assert head.splitlines()[-1].startswith("ours ")
    assert phases.splitlines()[-1] in (tmp_path / "bench.md").read_text()


def test_what_fails_or_has_no_time_left_is_written_down_too():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import gpu
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    failed = gpu.measure("none_such.py", 60)
    assert failed["outcome"] == "exit code 2"
    assert "none_such" in failed["output"]
    assert gpu.measure("head.py", 0)["outcome"] == "no time left"
    assert "exit code 2" in gpu.page([failed])
