"""A text that never prints itself."""

import traceback

import pytest

from proxy.secret import Secret


@pytest.mark.parametrize("show", [repr, str, lambda s: f"{s}", lambda s: f"{[s]!r}", "{!s}".format])
def test_a_secret_never_prints_itself(show) -> None:  # type: ignore[no-untyped-def]
    """No way of printing a secret shows its text."""
    assert "hunter2" not in show(Secret("hunter2"))


def test_the_text_is_given_to_whoever_asks() -> None:
    """The text is returned by name."""
    assert Secret("hunter2").reveal() == "hunter2"


def test_secrets_compare_by_text() -> None:
    """Secrets of one text are equal, and differ from the text itself."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2


def test_a_secret_takes_no_attributes() -> None:
    """Nothing can be hung on a secret that would print it; the error does not show it either."""
    secret = Secret("hunter2")
    with pytest.raises(AttributeError) as caught:
        secret.text = "x"  # type: ignore[attr-defined]
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
