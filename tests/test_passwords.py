"""Passwords and keys of URLs are shown to nobody."""

from __future__ import annotations

import pytest

from local_distill.passwords import without_passwords


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://me:secret@host:8000/v1", "http://***@host:8000/v1"),
        ("https://secret@host", "https://***@host"),
        ("http://me:p@secret@host", "http://***@host"),
        ("http://a:secret@host1,http://b:secret@host2", "http://***@host1,http://***@host2"),
        ("--teacher_url=http://me:secret@host", "--teacher_url=http://***@host"),
        ("https://host/?write_token=secret&x=1", "https://host/?write_token=***&x=1"),
        ("https://host/?api_key=secret#top", "https://host/?api_key=***#top"),
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("--max_new_tokens", "--max_new_tokens"),
        ("me@host", "me@host"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_passwords_and_keys_of_urls_are_masked(given: str, shown: str) -> None:
    assert without_passwords(given) == shown
