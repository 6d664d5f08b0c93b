"""Hash tags and owners, as they are written."""

import pytest
from pydantic import TypeAdapter, ValidationError

from proxy.policy.tags import HashTag, HashTagWord, Owner


def test_a_tag_is_a_segment_or_a_word() -> None:
    """A name is that of a segment; a word in a mapping is the same for all keys."""
    tags: TypeAdapter[object] = TypeAdapter(HashTag)
    assert tags.validate_python("event_id") == "event_id"
    assert tags.validate_python({"literal": "jobs"}) == HashTagWord("jobs")
    for wrong in ({"literal": "a}"}, {"literal": ""}, {"word": "a"}, ["a"], None):
        with pytest.raises(ValidationError):
            tags.validate_python(wrong)


@pytest.mark.parametrize(
    ("written", "told"),
    [("user_id", 'did you mean "$.user_id"?'), ("$.", "expects value"), ("value\n", "expects")],
)
def test_owners(written: str, told: str) -> None:
    """An owner is the value or a member of it; a bare name is a member without its sign."""
    owners: TypeAdapter[str] = TypeAdapter(Owner)
    assert owners.validate_python("value") == "value"
    assert owners.validate_python("$.user.id") == "$.user.id"
    with pytest.raises(ValidationError, match="expects value, or a member") as refused:
        owners.validate_python(written)
    assert told in str(refused.value)
