"""What values of locks say."""

import json

import pytest

from proxy.handlers.owners import member, owner_of, said_by, value_for


@pytest.mark.parametrize(
    ("path", "value", "owner"),
    [
        ((), b"me", "me"),
        ((), b"\xff", None),
        (("user_id",), b'{"user_id": "u"}', "u"),
        (("user", "id"), b'{"user": {"id": 7}}', "7"),
        (("user_id",), b'{"user_id": ""}', None),
        (("user_id",), b'{"user_id": true}', None),
        (("user_id",), b'{"user_id": ["u"]}', None),
        (("user_id",), b'["u"]', None),
        (("user_id",), b"{", None),
        (("user_id",), b"[" * 100_000, None),
    ],
)
def test_a_value_names_its_owner(path: tuple[str, ...], value: bytes, owner: str | None) -> None:
    """An owner is the value, or a text or a number in it; whatever else is nobody."""
    assert owner_of(path, value) == owner


@pytest.mark.parametrize("path", [("user_id",), ("user", "id")])
def test_what_is_shown_can_be_read(path: tuple[str, ...]) -> None:
    """A value that no client has written has the owner where the policy looks for it."""
    value = value_for(path, "u", "b", None, 9.6)
    assert owner_of(path, value.encode()) == "u"
    assert member(said_by(value.encode()), ["booking_id"]) == "b"
    assert json.loads(value)["expires_in"] == 10


def test_an_owner_may_be_all_of_it() -> None:
    """Without a path the value is the owner."""
    assert value_for((), "u", "b", None, 9.6) == "u"
