"""Rate limits from the files to the rows that commands are charged by."""

import pytest

from proxy.commands import INDEX
from proxy.wire.rules import Algorithm, Per, Rate, Scope, Unavailable
from tests.policy.rulebook import Folder

RULES = """
keyspaces:
  k:
    key: "k:{user_id}:{n:int}"
    cluster: locks
    rate:
      - {per: user_id, limit: 5/h, algorithm: window, scope: shared, commands: [INCR, "@read"]}
      - {per: ip, limit: 1000/min, mode: observe}
      - {per: n, limit: 10/s, burst: 3, scope: shared, on_unavailable: deny, mode: enforce 10%}
roles:
  default: {rate: [{per: client, limit: 50/s, burst: 0}]}
"""


def rows(folder: Folder, text: str = RULES) -> list[Rate]:
    return [rate.row for rate in folder.compile(text).rates]


def test_a_limit_says_who_shares_it(folder: Folder) -> None:
    """Segments are found by name, everybody else by the word; a role's limits come last."""
    assert [(row.owner, row.label, row.per, row.segment) for row in rows(folder)] == [
        ("keyspace k", "5/h per user_id", Per.SEGMENT, 0),
        ("keyspace k", "1000/min per ip", Per.IP, -1),
        ("keyspace k", "10/s per n", Per.SEGMENT, 1),
        ("role default", "50/s per client", Per.CLIENT, -1),
    ]


def test_how_much_and_how(folder: Folder) -> None:
    """Amounts, periods and manners are as written; a burst that is not said is one in a hundred."""
    first, second, third, role = rows(folder)
    assert (first.amount, first.seconds, first.algorithm, first.burst) == (
        5, 3600.0, Algorithm.WINDOW, 0,
    )  # fmt: skip
    assert (second.burst, third.burst, role.burst) == (10, 3, 0)
    assert (first.scope, first.unavailable, first.cluster) == (Scope.SHARED, Unavailable.LOCAL, 0)
    assert (second.scope, third.unavailable) == (Scope.LOCAL, Unavailable.DENY)
    assert role.cluster == 1


def test_which_commands_count(folder: Folder) -> None:
    """Only named commands and categories count; all do where none is named."""
    first, second, *_ = rows(folder)
    assert second.commands is None
    assert first.commands is not None
    assert [first.commands[INDEX[name]] for name in (b"incr", b"get", b"set")] == [1, 1, 0]


def test_how_seriously(folder: Folder) -> None:
    """A limit is enforced as it says itself, or as its keyspace does."""
    assert [row.enforced for row in rows(folder)] == [100, 0, 10, 100]
    text = RULES.replace("cluster: locks", "cluster: locks\n    mode: warn")
    assert [row.enforced for row in rows(folder, text)] == [0, 0, 10, 100]


def test_the_refusal_says_which_limit(folder: Folder) -> None:
    """The error line names the owner and the limit, and leaves the time to the data plane."""
    assert rows(folder)[0].error == (
        b"-RATELIMITED keyspace k allows 5/h per user_id; retry_after_ms="
    )


@pytest.mark.parametrize(
    ("limit", "complaint"),
    [
        ("{per: user_id, limit: 1/s}", "is no segment of the key"),
        ("{per: user, limit: 2000/s, algorithm: window}", "exact up to 1000"),
        ("{per: user, limit: 1/s, on_unavailable: deny}", "say scope: shared"),
        ("{per: client, limit: 1/s, scope: shared}", "say scope: local"),
    ],
)
def test_mistakes_in_limits_of_roles(folder: Folder, limit: str, complaint: str) -> None:
    """Limits of roles are checked like those of keyspaces; a role has no segments."""
    (line,) = folder.complaints(f"roles:\n  default: {{rate: [{limit}]}}\n")
    assert complaint in line
