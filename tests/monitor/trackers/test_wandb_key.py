"""A key for wandb: found wherever wandb itself would look, and asked for before any model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_distill.errors import UserError
from local_distill.monitor.trackers.choosing import check_wandb

KEY = "0123456789" * 4
pytestmark = pytest.mark.usefixtures("no_wandb_account")


def test_wandb_online_without_a_key_is_refused_early(capfd: pytest.CaptureFixture[str]) -> None:
    check_wandb("offline")
    check_wandb("disabled")
    with pytest.raises(UserError, match=r"no Weights & Biases key.*`wandb login`.*--wandb_mode offline") as raised:
        check_wandb("online")
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")  # wandb has neither asked nor explained


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_a_key_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, KEY)
    check_wandb("online")


def test_a_key_in_wandbs_settings(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text(f"[default]\napi_key = {KEY}\n")
    check_wandb("online")


@pytest.mark.parametrize("file", [".netrc", "_netrc", "elsewhere"])
def test_a_key_in_netrc(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if file == "elsewhere":
        monkeypatch.setenv("NETRC", str(tmp_path / file))
    path = tmp_path / file
    path.write_text(f"machine github.com login me password {KEY}\n")
    with pytest.raises(UserError, match="no Weights & Biases key"):
        check_wandb("online")
    path.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    check_wandb("online")


def test_a_broken_netrc_is_named_and_its_key_is_not(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user passwort {KEY}\n")
    with pytest.raises(UserError, match=r"\.netrc: cannot be read") as raised:
        check_wandb("online")
    assert KEY not in str(raised.value)
