"""The language of sidecache.yaml as types."""

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from proxy import settings
from proxy.secret import Secret
from proxy.settings import URL, Document, parse_address, parse_url, parse_urls


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("redis://h", URL("h", None, None, None, False)),
        ("redis://h:7000", URL("h", 7000, None, None, False)),
        ("rediss://h:7000/", URL("h", 7000, None, None, True)),
        ("redis://h/0", URL("h", None, None, None, False)),
        ("redis://u:p@h:1", URL("h", 1, "u", Secret("p"), False)),
        ("redis://:p@h:1", URL("h", 1, None, Secret("p"), False)),
        ("redis://u%40x:p%2F%3A%25@h:1", URL("h", 1, "u@x", Secret("p/:%"), False)),
        ("redis://[::1]:7000", URL("::1", 7000, None, None, False)),
        ("rediss://u:p@[fe80::1]", URL("fe80::1", None, "u", Secret("p"), True)),
        ("  redis://10.0.0.1:7000\n", URL("10.0.0.1", 7000, None, None, False)),
    ],
)
def test_urls(written: str, url: URL) -> None:
    """A URL gives host, port, user, password and TLS, escapes undone."""
    assert parse_url(written) == url


@pytest.mark.parametrize(
    "written",
    [
        "hunter2", "u:hunter2@h:1", "http://u:hunter2@h", "redis://u:hunter2@h:port",
        "redis://u:hunter2@h:70000", "redis://u:hunter2@h:0", "redis://u:hunter2@", 5, None,
        "redis://u:hunter2@h:1/3", "redis://u:hunter2@h:1?db=1", "redis://u:hunter2@h:1#x",
        "redis://u:hunter2@[::1:7", "hunter2://h", "redis://u:hunter2/x@h:1",
    ],
)  # fmt: skip
def test_wrong_urls_are_told_and_never_shown(written: object) -> None:
    """What is no URL of a node is refused in words that show nothing of it."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_url(written)
    shown = "".join(traceback.format_exception_only(caught.value))
    assert "hunter2" not in shown
    assert "redis" in shown or "port 0" in shown


@pytest.mark.parametrize(
    "text", ["redis://a,redis://b", " redis://a ,\n redis://b\n", "redis://a redis://b,"]
)
def test_several_urls(text: str) -> None:
    """Several URLs stand apart by commas or white space."""
    assert [url.host for url in parse_urls(text)] == ["a", "b"]


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:6379", ("127.0.0.1", 6379)),
        ("[::1]:6379", ("::1", 6379)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_addresses(written: str, address: tuple[str, int]) -> None:
    """An address is host and port, an IPv6 host in brackets."""
    assert parse_address(written) == address


@pytest.mark.parametrize(
    "written", ["6379", ":6379", "h:", "::1:6379", "h:65536", "h:-1", "h:\u0663", 6379]
)
def test_wrong_addresses(written: object) -> None:
    """What is no address is refused."""
    with pytest.raises(ValueError, match="port"):
        parse_address(written)


@given(st.text())
def test_any_text_is_an_url_or_a_mistake(text: str) -> None:
    """Whatever is written, a parser returns or raises ValueError."""
    for parse in (parse_url, parse_urls, parse_address):
        try:
            parse(text)
        except ValueError:
            continue


def test_a_document_may_be_empty() -> None:
    """Everything but the clusters has a default."""
    document = Document.model_validate({})
    assert document.admin == ("127.0.0.1", 9121)
    assert document.limits.clients == 10_000
    assert document.drain.timeout == 10.0


@pytest.mark.parametrize(
    "plain",
    [
        {"limits": {"clients": 0}},
        {"limits": {"clients": 1_000_001}},
        {"limits": {"output_bytes": 0}},
        {"limits": {"unauthenticated": "0s"}},
        {"limits": {"idle": "10000d"}},
        {"drain": {"timeout": "0s"}},
        {"clusters": {"Locks": {}}},
        {"clusters": {"x" * 33: {}}},
        {"clusters": {"cache": {"connections": 65}}},
        {"clusters": {"cache": {"connections": 0}}},
        {"clusters": {"cache": {"timeout": "0s"}}},
        {"clusters": {"cache": {"mode": "ring"}}},
        {"users": {"a b": {}}},
        {"users": {"a": {"password_sha256": "ab"}}},
        {"users": {"a": {"password": ""}}},
        {"users": {"a": {"password": 1234}}},
        {"listen": {"unix_mode": "0999"}},
        {"listen": {"unix_mode": "77777"}},
        {"listen": {"unix": "/" + "x" * settings.MAX_UNIX_PATH}},
    ],
)
def test_limits_of_values(plain: object) -> None:
    """A value beyond its limits is refused."""
    with pytest.raises(ValidationError):
        Document.model_validate(plain)


@pytest.mark.parametrize(("written", "mode"), [("0660", 0o660), ("600", 0o600), (660, 0o660)])
def test_the_mode_of_a_socket(written: object, mode: int) -> None:
    """Permissions are octal digits, with quotes or without."""
    assert Document.model_validate({"listen": {"unix_mode": written}}).listen.unix_mode == mode


def test_every_field_says_what_it_means() -> None:
    """The descriptions are the reference of the file, so every field has one."""
    blocks = [
        block
        for block in vars(settings).values()
        if isinstance(block, type) and issubclass(block, BaseModel)
        and block.__module__ == settings.__name__
    ]  # fmt: skip
    assert len(blocks) >= 8
    silent = [
        f"{block.__name__}.{name}"
        for block in blocks
        for name, field in block.model_fields.items()
        if not field.description
    ]
    assert not silent
