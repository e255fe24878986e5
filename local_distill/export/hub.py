"""The hub: asked whether it can be written to before anything is loaded, written to at the very end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from local_distill.errors import UserError, one_line, with_type

FLAG = "--push_to_hub"


def check_hub(name: str, api: HfApi) -> None:
    """Raise UserError unless ``name`` can be a model's and somebody is logged in."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = one_line(error).rstrip(".")
        raise UserError(f"{FLAG} {name}: no name for the hub ({reason}); give owner/name") from error
    with _in_one_line(name):
        api.whoami()


def push(folder: Path, name: str, private: bool, api: HfApi) -> str:
    """Upload the folder as a model, which is made where it is not there. Returns its address."""
    with _in_one_line(name):
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message="Upload with local-distill", repo_type="model"
        )
        return str(made)


@contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """Tell in one line whatever goes wrong between here and the hub; no token is in these messages."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError(f"{FLAG} {name}: nobody is logged in; hf auth login, or set HF_TOKEN") from error
    except Exception as error:  # httpx's, the hub's, the disk's
        raise UserError(
            f"{FLAG} {name}: {with_type(error, 200).rstrip('.')}; check the name, the token's rights and the connection"
        ) from error
