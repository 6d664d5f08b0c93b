"""What PostgreSQL's values look like, and what reaches it of a client's."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from proxy.config import Database
from proxy.origin import pool
from proxy.origin.codecs import Document, Number, canonical, document, number, set_codecs, text_of
from proxy.secret import Secret


@pytest.fixture
async def connection(postgres: str) -> AsyncIterator[pool.Connection]:
    """A connection like those that run statements."""
    found = await pool.connect(Secret(postgres), Database(Secret(postgres), Secret(postgres)))
    await set_codecs(found)
    yield found
    found.terminate()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("9223372036854775807::bigint", Number("9223372036854775807")),
        ("1.50::numeric(9, 2)", Number("1.50")),
        ("1e-10::numeric", Number("0.0000000001")),
        ("1e20::float8", Number("100000000000000000000")),
        ("0.1::float4", Number("0.1")),
        ("'NaN'::numeric", Number("NaN")),
        ("'-Infinity'::float8", Number("-Infinity")),
        ("true", True),
        ("NULL::int", None),
        ("'2026-01-02 03:04:05.600+02'::timestamptz", "2026-01-02T01:04:05.6Z"),
        ("'infinity'::timestamptz", "infinity"),
        ("'0044-03-15 12:00 BC'::timestamptz", "0044-03-15T12:00:00Z BC"),
        ("'2026-01-02 03:04:05'::timestamp", "2026-01-02T03:04:05"),
        ("'2026-01-02'::date", "2026-01-02"),
        ("'1 day 2 hours'::interval", "P1DT2H"),
        ("'5F0C0000-0000-0000-0000-000000000001'::uuid", "5f0c0000-0000-0000-0000-000000000001"),
        ("""'{"b": 1e3, "a": [1.50, "\\u00e9", null]}'::jsonb""",
         Document('{"a":[1.50,"é",null],"b":1000}')),
        ("""'{"b":1, "a" : 1e400}'::json""", Document('{"a":1' + 400 * "0" + ',"b":1}')),
        ("'\\x00ff'::bytea", b"\x00\xff"),
        ("ARRAY[1, NULL, 3]", [Number("1"), None, Number("3")]),
        ("ARRAY['a,b', '\"', '']", ["a,b", '"', ""]),
        ("ARRAY[ARRAY[true], ARRAY[false]]", [[True], [False]]),
        ("'{}'::text[]", []),
        ("'1.2.3.0/24'::cidr", "1.2.3.0/24"),
    ],
)  # fmt: skip
async def test_values(connection: pool.Connection, sql: str, value: object) -> None:
    """Numbers keep their digits, moments are RFC 3339 in UTC, documents have one spelling."""
    found = await connection.fetchval(f"SELECT {sql}")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sql", "text", "value"),
    [
        ("$1::bigint", "42", Number("42")),
        ("$1::numeric", "1e3", Number("1000")),
        ("$1::boolean", "yes", True),
        ("$1::timestamptz", "2026-01-01", "2026-01-01T00:00:00Z"),
        ("$1::jsonb", '{"a": 1}', Document('{"a":1}')),
        ("$1::text", "é", "é"),
        ("$1::bytea", text_of(b"\x00\xff"), b"\x00\xff"),
        ("$1::text[]", ["a", None], ["a", None]),
        ("$1::int[]", ["1", "2"], [Number("1"), Number("2")]),
        ("$1::date", None, None),
    ],
)
async def test_parameters_are_text(
    connection: pool.Connection, sql: str, text: object, value: object
) -> None:
    """Whatever type the table has, a client's text is read by PostgreSQL itself."""
    assert await connection.fetchval(f"SELECT {sql}", text) == value


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sql", "text"), [("$1::int", "x"), ("$1::text", "a\0"), ("$1::text", text_of(b"\xff"))]
)
async def test_text_that_means_nothing_is_refused(
    connection: pool.Connection, sql: str, text: str
) -> None:
    """As an error about data, also where the driver notices it before PostgreSQL."""
    with pytest.raises(asyncpg.DataError):
        await connection.fetchval(f"SELECT {sql}", text)


def test_numbers_have_no_exponent() -> None:
    """Unless it would take gigabytes to write them without."""
    assert number("-1.5e-3") == "-0.0015"
    assert number("1e999999999") == "1e999999999"


def test_equal_documents_have_equal_bytes() -> None:
    """Members sorted, no blanks, one spelling of numbers and characters."""
    assert (
        document('{"b":[ ], "a":"\\u0041"}') == document('{"a": "A","b":[]}') == '{"a":"A","b":[]}'
    )
    assert (
        document("[1E2, 123456789012345678901234567890]") == "[100,123456789012345678901234567890]"
    )
    assert document("9" * 5000) == "9" * 5000


def test_values_within_json() -> None:
    """What has no word in JSON is text."""
    row = {"n": Number("NaN"), "b": b"\x01", "t": None, "l": [True, Number("1.0")], "s": '"'}
    assert canonical(row) == '{"b":"\\\\x01","l":[true,1.0],"n":"NaN","s":"\\"","t":null}'
