"""Times in Redis are longer than clients know, in every command that says one."""

import pytest

from proxy import resp, wire
from proxy.handlers.ageing import lengthened, told
from tests.handlers.desk import ruleset

WINDOW = 30_000


@pytest.mark.parametrize(
    ("command", "longer"),
    [
        ("SET k v EX 10", "SET k v PX 40000"),
        ("SET k v NX px 10", "SET k v NX PX 30010"),
        ("SET k v EXAT 2000000000", "SET k v PXAT 2000000030000"),
        ("SET k EX KEEPTTL", "SET k EX KEEPTTL"),
        ("set k v", "set k v"),
        ("GETEX k PXAT 2000000000000", "GETEX k PXAT 2000000030000"),
        ("GETEX k PERSIST", "GETEX k PERSIST"),
        ("SETEX k 10 v", "PSETEX k 40000 v"),
        ("PSETEX k 10 v", "PSETEX k 30010 v"),
        ("EXPIRE k 10 NX", "PEXPIRE k 40000 NX"),
        ("PEXPIRE k 10", "PEXPIRE k 30010"),
        ("EXPIREAT k 2000000000", "PEXPIREAT k 2000000030000"),
        ("RESTORE k 5 x", "RESTORE k 30005 x"),
        ("RESTORE k 0 x", "RESTORE k 0 x"),
        # What a node refuses, or what ends the key, stays as it is.
        ("SET k v EX 0", "SET k v EX 0"),
        ("SET k v EX -1", "SET k v EX -1"),
        ("SET k v EX 01", "SET k v EX 01"),
        ("SET k v EX 9223372036854775807", "SET k v EX 9223372036854775807"),
        ("EXPIRE k -5", "EXPIRE k -5"),
        ("EXPIRE k x", "EXPIRE k x"),
        ("HSET k EX 10", "HSET k EX 10"),
        ("NONSENSE k 10", "NONSENSE k 10"),
    ],
)
def test_a_window_is_added_to_each_time(command: str, longer: str) -> None:
    """The window is added where the command says a time that a node takes."""
    frame = wire.pack(command.encode().split())
    assert resp.decode(lengthened(ruleset(), frame, WINDOW)) == longer.encode().split()
    assert lengthened(ruleset(), frame, 0) is frame


@pytest.mark.parametrize(
    ("ms", "seconds", "said"),
    [(-2, True, -2), (-1, False, -1), (90_000, False, 60_000), (90_499, True, 60),
     (90_500, True, 61), (29_000, True, 0), (30_000, False, 0)],
)  # fmt: skip
def test_the_window_is_not_told(ms: int, seconds: bool, said: int) -> None:
    """Clients hear of the time that they asked for, rounded as Redis rounds, at least 0."""
    assert told(ms, WINDOW, seconds) == said
