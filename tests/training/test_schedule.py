"""A run that is gone on with for more steps: what its learning rate does is said, or it keeps its schedule."""

import json

import pytest

SMALL = [
    "--batch_size", "2", "--group_size", "1", "--max_new_tokens", "4", "--eval_prompts", "0", "--learning_rate", "0.01",
    "--lr_scheduler", "cosine", "--output_dir", "run",
]  # fmt: skip


def test_a_rate_that_jumps_is_said_and_can_be_kept(run_command, folders, tmp_path):
    models = ["--student_model", folders["student"], "--teacher_model", folders["teacher"], *SMALL]
    code, _, err = run_command([*models, "--steps", "2"])
    assert (code, err) == (0, "")
    code, out, err = run_command([*models, "--steps", "3", "--resume"])
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert "cosine now ends after 3 steps, not 2: the learning rate goes on at 0.0025, not at 0.005; " in said
    assert "--schedule_steps 2 keeps the schedule" in said
    code, out, err = run_command([*models, "--steps", "4", "--schedule_steps", "3", "--resume"])
    assert (code, err) == (0, "")
    assert "keeps the schedule" not in out
    rates = [
        json.loads(line)["learning_rate"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    # Half a cosine over two steps, then over three; the fourth step stays where the third was.
    assert rates == pytest.approx([0.01, 0.005, 0.0025, 0.0025])
