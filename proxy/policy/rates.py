"""Rate limits as written to the rows that the data plane charges commands by."""

from collections.abc import Mapping, Sequence

from proxy import errors
from proxy.policy.blocks import MODES, RateLimit, Trial
from proxy.policy.model import Keyspace, Role
from proxy.policy.rights import Vocabulary
from proxy.units import Rate
from proxy.wire import rules
from proxy.wire.rules import Algorithm, Per, Scope, Unavailable

_PERIODS = {0.001: "ms", 1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "d"}

_PER: Mapping[str, Per] = {per.name.lower(): per for per in Per if per is not Per.SEGMENT}


def of_keyspace(
    name: str, own: Keyspace, vocabulary: Vocabulary, cluster: int
) -> tuple[rules.Rate, ...]:
    """Return the limits of a keyspace; shared ones are counted on its cluster."""
    return tuple(
        _row(f"keyspace {name}", limit, own.key.names, limit.mode or own.mode, vocabulary, cluster)
        for limit in own.rate
    )


def of_role(name: str, role: Role, vocabulary: Vocabulary, cluster: int) -> tuple[rules.Rate, ...]:
    """Return the limits of a role; shared ones are counted on the default cluster."""
    return tuple(
        _row(f"role {name}", limit, (), limit.mode or MODES["enforce"], vocabulary, cluster)
        for limit in role.rate
    )


def in_words(limit: RateLimit) -> str:
    """Return a limit as a person says it: 5/h per user_id."""
    return f"{limit.limit.amount}/{_period(limit.limit)} per {limit.per}"


def _period(rate: Rate) -> str:
    return _PERIODS[rate.seconds]


def _row(
    owner: str,
    limit: RateLimit,
    segments: Sequence[str],
    trial: Trial,
    vocabulary: Vocabulary,
    cluster: int,
) -> rules.Rate:
    amount, seconds = limit.limit
    # One cell in a hundred, at least one: a client that is a little early is not refused for it.
    # Where the limit is below 100 that one is more than 1 %: of 5/s a first second lets 6 pass.
    burst = max(1, amount // 100) if limit.burst is None else limit.burst
    segment = segments.index(limit.per) if limit.per in segments else -1
    return rules.Rate(
        owner=owner,
        label=in_words(limit),
        words=" ".join(limit.commands),
        per=Per.SEGMENT if segment >= 0 else _PER[limit.per],
        segment=segment,
        amount=amount,
        seconds=seconds,
        burst=0 if limit.algorithm == "window" else burst,
        algorithm=Algorithm[limit.algorithm.upper()],
        scope=Scope[limit.scope.upper()],
        unavailable=Unavailable[limit.on_unavailable.upper()],
        cluster=cluster,
        enforced=trial.refused,
        noted=trial.told,
        commands=_flags(limit, vocabulary),
        error=errors.rate_limited(owner, in_words(limit)),
    )


def _flags(limit: RateLimit, vocabulary: Vocabulary) -> bytes | None:
    if not limit.commands:
        return None
    counted = {index for word in limit.commands for index in vocabulary.commands(word)}
    return bytes(index in counted for index in range(len(vocabulary.rows)))
