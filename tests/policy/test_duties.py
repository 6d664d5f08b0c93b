"""Which commands meet which rules of a keyspace."""

from proxy.commands import INDEX, ROWS
from proxy.policy import duties
from proxy.policy.model import Keyspace
from proxy.wire.rules import Duty, Rule


def flags(command: bytes, **fields: object) -> Duty:
    own = Keyspace.model_validate({"key": "k:{id}", **fields})
    return Duty(duties.Duties(ROWS).of(own)[INDEX[command]])


def test_a_keyspace_without_rules_has_no_duties() -> None:
    """Commands of a keyspace without rules cost nothing more than a look at a byte."""
    assert not any(duties.Duties(ROWS).of(Keyspace.model_validate({"key": "k:{id}"})))


def test_only_commands_of_another_type_are_looked_at() -> None:
    """A command whose type fits in every place is not looked at again."""
    assert flags(b"hget", type="hash") == 0
    assert flags(b"del", type="hash") == 0
    assert flags(b"get", type="hash") == Duty.TYPE
    assert flags(b"zunionstore", type="set") == Duty.TYPE


def test_what_is_carried_is_looked_at() -> None:
    """RENAME and COPY bring a type, a time and members along that their new keyspace may bound."""
    for name in (b"rename", b"renamenx", b"copy"):
        assert flags(name, type="hash") == Duty.TYPE
        assert flags(name, ttl={"max": "5s"}) == Duty.TTL
        assert flags(name, collection={"max_items": 5}) == Duty.COLLECTION
    assert flags(b"restore", collection={"max_items": 5}) == Duty.COLLECTION


def test_only_commands_with_values_are_measured() -> None:
    """A limit on values concerns those who carry one."""
    assert flags(b"set", value={"max_bytes": 10}) == Duty.VALUE
    assert flags(b"get", value={"max_bytes": 10}) == 0
    assert flags(b"sadd", collection={"max_member_bytes": 10}) == Duty.VALUE


def test_only_writes_are_bound_to_their_connections() -> None:
    """What reads, or writes a part of a value, is forwarded without a look."""
    bound = [b"set", b"mset", b"sadd", b"srem", b"del"]
    assert {flags(name, bound="connection") for name in bound} == {Duty.ORIGIN}
    assert not any(flags(name, bound="connection") for name in (b"get", b"smembers", b"append"))


def test_keyspaces_that_say_the_same_share_their_flags() -> None:
    """What is known of one keyspace is used for another only where nothing differs."""
    known = duties.Duties(ROWS)
    different = (
        {},
        {"type": "hash"},
        {"type": "list"},
        {"rate": [{"per": "user", "limit": "5/s"}]},
        {"ttl": {"default": "5s"}},
        {"ttl": {"default": "5s", "missing": "allow"}},
        {"ttl": {"default": "5s", "refresh": "on_read"}},
        {"ttl": {"default": "5s", "refresh": "on_write"}},
        {"commands": {"bounds": {"SCAN COUNT": 5}}},
        {"commands": {"bounds": {"LRANGE span": 5}}},
        {"value": {"max_bytes": 5}},
        {"collection": {"max_items": 5}, "type": "zset"},
        {"bound": "connection"},
        {"write": {"mode": "behind"}},
    )
    owns = [Keyspace.model_validate({"key": "k:{id}", **fields}) for fields in different]
    found = [known.of(own) for own in owns]
    assert found == [duties.Duties(ROWS).of(own) for own in owns]
    assert len(set(found)) == len(different)
    assert known.of(owns[1]) is found[1]


def test_a_block_says_its_own_mode() -> None:
    """How seriously a rule is taken is said by its block, else by the keyspace."""
    own = Keyspace.model_validate(
        {
            "key": "k",
            "mode": "warn",
            "ttl": {"mode": "enforce 25%"},
            "commands": {"mode": "enforce"},
        }
    )
    shares = [trial.refused for trial in duties.trials(own)]
    assert shares[Rule.TTL] == 25
    assert shares[Rule.COMMANDS] == shares[Rule.BOUNDS] == 100
    assert shares[Rule.VALUE] == 0
    assert duties.trials(own)[Rule.VALUE].told
    assert not duties.trials(own)[Rule.TTL].told
