"""JSON Schema files that values must fit."""

import json

import pytest

from tests.policy.rulebook import Folder, complaints

RULES = "keyspaces:\n  k: {key: a, value: {schema: FILE}}\n"


def refused(folder: Folder, schema: str, name: str = "s.json") -> list[str]:
    """Return what is wrong with a folder whose one policy names a schema of this text."""
    folder.write(schema, "s.json")
    folder.write(RULES.replace("FILE", name))
    return complaints(folder.path)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ('{"type":\n  "objec"}', 's.json:2:3: no JSON Schema: "objec" is not valid'),
        ('{"type": }', "s.json:1:10: not JSON: Expecting value"),
        ("5", "s.json:1:1: no JSON Schema: 5 is not of types"),
        ('{"$ref": "http://127.0.0.1/x"}', "Retrieval is disabled"),
        ('{"$ref": "#/$defs/x"}', "Pointer '/$defs/x' does not exist"),
        ('{"properties": {"a":\n {"pattern": "("}}}', 's.json:2:14: no JSON Schema: "(" is not'),
        # Patterns that may take for ever are no patterns here.
        ('{"pattern": "(a+)+\\\\1"}', "s.json:1:13"),
        ('{"format": "datetime"}', "Unknown format: 'datetime'"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_mistake_in_a_schema_has_its_line(folder: Folder, schema: str, expected: str) -> None:
    """What is wrong in a schema is told with its own file and line, and stops the policies."""
    (message,) = refused(folder, schema)
    assert expected in message


def test_a_schema_that_is_not_there(folder: Folder) -> None:
    """A file that cannot be read is a mistake of the policy that names it."""
    (message,) = refused(folder, "{}", "t.json")
    assert message.startswith("a.yaml:2:31: schema: t.json cannot be opened: No such file")


def test_a_schema_may_be_written_as_yaml_may_not(folder: Folder) -> None:
    """JSON is read as JSON: with tabs, and with characters that take two escapes."""
    text = '{\n\t"properties": {"\\ud83d\\ude00": {"type": "integer"}}\n}'
    assert refused(folder, text) == []
    (message,) = refused(folder, text.replace("integer", "int"))
    assert "no JSON Schema" in message


def test_the_defaults_may_name_a_schema(folder: Folder) -> None:
    """A schema of the defaults is that of every keyspace, and its mistake is placed there."""
    folder.write('{"type": "object"}', "s.json")
    text = "defaults: {value: {schema: s.json}}\nkeyspaces: {k: {key: a}, l: {key: b}}"
    assert set(folder.load(text).schemas) == {"k", "l"}
    (message, *_) = folder.complaints(text.replace("s.json", "t.json"))
    assert message.startswith("a.yaml:1:28: schema: ")


def test_a_changed_schema_is_a_changed_rule(folder: Folder) -> None:
    """Two loads of one schema are the same rules; another schema in the same file is not."""
    folder.write('{"type": "object"}', "s.json")
    first, second = (folder.load(RULES.replace("FILE", "s.json")) for _ in range(2))
    assert first.schemas == second.schemas
    folder.write('{"type": "array"}', "s.json")
    assert folder.load(RULES.replace("FILE", "s.json")).schemas != first.schemas


def test_what_is_told_of_a_value_is_bounded(folder: Folder) -> None:
    """Names of a client's members are escaped and cut before they stand in an error line."""
    folder.write('{"additionalProperties": {"type": "integer"}}', "s.json")
    fit = folder.load(RULES.replace("FILE", "s.json")).schemas["k"]
    for name, shown in [
        ("a/b~c", "/a~1b~0c"), ("a\r\nb", r"/a\r\nb"), ("é\0", r"/\xe9\x00"),
        ("x" * 1000, "/" + "x" * 60 + "..."), ("日" * 1000, None),
    ]:  # fmt: skip
        told = fit(json.dumps({name: "text"}).encode())
        assert told is not None
        assert told.count(b"\r\n") == 1
        assert len(told) < 180
        assert told.isascii()
        assert shown is None or f" at {shown} (type)" in told.decode()
