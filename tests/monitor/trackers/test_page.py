"""The page on trackers names every metric that real runs log, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from local_distill.monitor.trackers.sinks import SINKS

PAGE = Path(__file__).parents[3] / "docs" / "trackers.md"


def test_the_table_of_metrics_is_what_runs_log(folders: dict[str, Path], run_command: Callable[..., object]) -> None:
    """A loss of each family: together they log every name."""
    pair = ["--student_model", folders["student"], "--teacher_model", folders["teacher"]]
    small = ["--batch_size", "2", "--group_size", "1", "--max_new_tokens", "8", "--max_prompt_tokens", "90"]
    short = ["--steps", "1", "--eval_prompts", "2", "--temperature", "1", "--top_p", "1"]
    logged: set[str] = set()
    for loss in ("policy_gradient", "reverse_kl"):
        code, *printed = run_command([*pair, *small, *short, "--loss", loss, "--output_dir", loss])
        assert code == 0, printed
        lines = (Path(loss) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged |= {name for line in lines for name in json.loads(line)}
        (start,) = json.loads((Path(loss) / "environment.json").read_text(encoding="utf-8"))
        assert start["packages"]["torch"]
    named = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8").split("## Metrics")[1], re.M)
    assert len(named) == len(set(named))
    assert set(named) == logged - {"step"}


def test_every_tracker_with_a_way_of_its_own_has_an_extra_and_a_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"`pip install -e '\.\[(\w+)\]'`", text)) == set(SINKS)
    extras = (PAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{name} = [" in extras for name in SINKS)
