"""Weights & Biases offline, its file read back."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from local_distill.monitor.log import open_run_log
from local_distill.monitor.terminal import Terminal
from local_distill.monitor.trackers.readable import coloured
from tests.tracked import COMPLETION, CONFIG, NUMBERS, accelerator, evaluation


def wandb_records(folder: Path) -> list[Any]:
    """The records of the one offline run in ``folder``, whose file is LevelDB's log format after seven bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes a little later than it answers
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, parts, records = path.read_bytes(), 7, b"", []
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left  # a header does not straddle blocks
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


@pytest.mark.usefixtures("no_wandb_account")
def test_wandb_offline_resumed_and_failing(tmp_path: Path) -> None:
    log = open_run_log(
        accelerator("wandb"),
        Terminal(),
        tmp_path,
        CONFIG,
        resumed_step=40,
        wandb_project="project",
        wandb_name="name",
        wandb_mode="offline",
    )

    def crash() -> None:
        with log:
            log.step(41, {"reverse_kl": 1.25, "loss": math.nan, "seconds/sample": 1.5})
            log.evaluation(evaluation(41))
            log.step(42, {"reverse_kl": 1.125})
            raise RuntimeError("a crash")

    with pytest.raises(RuntimeError, match="a crash"):
        crash()

    records = wandb_records(tmp_path)
    (started,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (started.project, started.display_name) == ("project", "name")
    config = {item.key: json.loads(item.value_json) for record in records for item in record.config.update}
    assert config == CONFIG | {"dataset": "None", "betas": "(0.9, 0.95)", "dir": "x"}

    history = {
        record.history.step.num: {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
        }
        for record in records
        if record.WhichOneof("record_type") == "history"
    }
    assert sorted(history) == [41, 42]
    shown = {name: value for name, value in history[41].items() if not name.startswith(("_", "eval/completions/"))}
    assert shown == {"reverse_kl": 1.25, "seconds/sample": 1.5, **NUMBERS}
    (artifact,) = (record.artifact for record in records if record.WhichOneof("record_type") == "artifact")
    files = {entry.path: Path(entry.local_path).read_text(encoding="utf-8") for entry in artifact.manifest.contents}
    ((prompt, text, *_, reverse_kl, cell),) = json.loads(files["eval/completions.table.json"])["data"]
    assert (prompt, text, reverse_kl) == ("Capital of France?", "Paris \ufffd", None)
    assert files[cell["path"]] == coloured(COMPLETION)

    (end,) = (record.exit for record in records if record.WhichOneof("record_type") == "exit")
    assert end.exit_code == 1  # a run that crashed is not "finished"


def test_a_resumed_run_keeps_its_wandb_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *args: given.append(args[3]["wandb"]))
    (other := tmp_path / "other").mkdir()
    for folder, resumed_step in ((tmp_path, None), (tmp_path, 1), (other, 1)):
        open_run_log(accelerator("wandb"), Terminal(), folder, CONFIG, resumed_step=resumed_step).close()
    first, resumed, another = given
    assert first == {"name": None, "mode": "online", "dir": str(tmp_path), "id": first["id"], "resume": "allow"}
    assert resumed == first
    assert another["id"] != first["id"]
