"""Which trackers a run uses, and what is said of one that it cannot."""

from __future__ import annotations

import pytest
from accelerate.utils import LoggerType

from local_distill.errors import UserError
from local_distill.monitor.trackers import choosing
from local_distill.monitor.trackers.choosing import check_wandb, tracker_names


@pytest.mark.parametrize(
    ("project", "trackers", "mode", "names"),
    [
        (None, None, "online", []),
        (None, "", "online", []),
        ("p", None, "online", ["wandb"]),
        ("p", None, "offline", ["wandb"]),
        ("p", None, "disabled", []),
        ("p", "wandb,tensorboard", "disabled", ["tensorboard"]),
        (None, "tensorboard", "online", ["tensorboard"]),
        (None, " Tensorboard , wandb,, tensorboard ", "online", ["tensorboard", "wandb"]),
        ("p", "tensorboard,wandb", "online", ["wandb", "tensorboard"]),
    ],
)
def test_tracker_names(project: str | None, trackers: str | None, mode: str, names: list[str]) -> None:
    assert tracker_names(project, trackers, mode) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tensorbord", r"^--trackers: tensorbord is not a tracker; did you mean tensorboard\?.*aim.*wandb$"),
        ("xyz", r"^--trackers: xyz is not a tracker; choose from aim, clearml, comet_ml, .*wandb$"),
        ("all", r"--trackers: all is not a tracker"),
    ],
)
def test_an_unknown_tracker(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tracker_names(None, given)


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    assert tracker_names(None, "tensorboard") == ["tensorboard"]
    with pytest.raises(UserError, match=r"--trackers: the package comet-ml is not installed; pip install comet-ml"):
        tracker_names(None, "comet_ml")
    with pytest.raises(UserError, match=r"--wandb_project: the package wandb is not installed; pip install wandb"):
        tracker_names("p", None)
    with pytest.raises(UserError, match=r"--wandb_mode online: the package wandb is not installed"):
        check_wandb("online")
    assert tracker_names("p", None, "disabled") == []
