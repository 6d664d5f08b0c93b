"""What is said of locks between handlers."""

import pytest

from proxy.handlers.claims import Taken


@pytest.mark.parametrize(
    ("outcome", "granted"),
    [("acquired", True), ("extended", True), ("held", False), ("booked", False), ("lost", False)],
)
def test_what_is_granted(outcome: str, granted: bool) -> None:
    """A new grant and a longer one are; whatever else there is is not."""
    assert Taken(outcome).granted is granted
