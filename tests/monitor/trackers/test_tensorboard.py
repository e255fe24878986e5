"""TensorBoard's event files, read back by TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_distill.monitor.log import open_run_log
from local_distill.monitor.terminal import Terminal
from tests.tracked import CONFIG, accelerator, run


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(open_run_log(accelerator("tensorboard"), Terminal(), tmp_path, CONFIG), last=5)
    log = open_run_log(accelerator("tensorboard"), Terminal(), tmp_path, CONFIG, resumed_step=3)
    run(log, first=4, last=6)

    events = EventAccumulator(str(tmp_path / "logs" / "local-distill")).Reload()
    curve = {event.step: event.value for event in events.Scalars("reverse_kl")}
    assert curve == pytest.approx({step: 1 / step for step in range(1, 7)})
    assert len(events.Scalars("reverse_kl")) == 6  # steps 4 and 5 of the first part are gone
    assert [event.step for event in events.Scalars("eval/reverse_kl")] == [0, 6]
    assert "loss" not in events.Tags()["scalars"]  # it was never finite
    (text, *_) = events.Tensors("eval/completions/text_summary")
    (shown,) = text.tensor_proto.string_val
    assert b"alert" in shown
    assert not {b"<", b"`", b"[a]"} & {bytes([byte]) for byte in shown}
    (settings, *_) = (tmp_path / "logs" / "local-distill").glob("*/hparams.yml")
    assert "learning_rate: 0.0001" in settings.read_text()
