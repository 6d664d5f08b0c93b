"""How long keys live and how large they grow: the blocks `ttl:` and `collection:` of a keyspace.

`model` puts them into a keyspace beside those of `blocks`; `checks` says what goes together.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from proxy.policy.blocks import OwnMode
from proxy.units import DURATIONS, Percentage, PositiveDuration, PositiveSize, Switch
from proxy.validation import Strict

# Which end of which type can be kept; a stream grows at one end and gives way at the other.
ENDS = {
    "zset": ("highest", "lowest"),
    "list": ("newest", "oldest"),
    "stream": ("newest",),
}

# Redis' own limit.
MOST_ITEMS = 2**32 - 1

# Types whose commands have room for a time to live.
TIMED = ("string", "json")


def _time(value: object) -> object:
    """Say what was meant where people write 0 for no time to live."""
    if str(value) in {"0", *(f"0{unit}" for unit in DURATIONS)}:
        raise ValueError("must be more than 0: for no time to live leave it out, or say "
                         "missing: allow")  # fmt: skip
    return value


TimeToLive = Annotated[PositiveDuration, BeforeValidator(_time)]


class TTL(Strict):
    """How long keys live, on every path that creates, keeps or strips a time to live."""

    default: TimeToLive | None = Field(None, description="Given to keys that come without.")
    min: TimeToLive | None = Field(None, description="Shorter times are raised to this.")
    max: TimeToLive | None = Field(None, description="Longer times are cut to this.")
    jitter: Percentage | None = Field(
        None, description="Shortens the default by a random part of up to this, so that keys made "
        "together do not end together."
    )  # fmt: skip
    missing: Literal["apply", "reject", "allow"] | None = Field(
        None, description="What happens to a key without a time to live: it gets the default, is "
        "refused, or lives for ever. `apply` when there is a default, else `allow`."
    )  # fmt: skip
    refresh: Literal["never", "on_read", "on_write"] = Field(
        "never", description="What starts the time anew: writes, or reads as well, which makes it "
        "sliding."
    )  # fmt: skip
    mode: OwnMode = None

    @property
    def absent(self) -> str:
        """Return what happens to a key without a time to live, when it is not said too."""
        return self.missing or ("apply" if self.default else "allow")


class Collection(Strict):
    """How large a collection may grow. The trim rides along in the same write."""

    max_items: int | None = Field(
        None, ge=1, le=MOST_ITEMS, description="Most members, fields or entries. Sets and hashes "
        "have no order: what they have too much of is taken out at random."
    )  # fmt: skip
    max_member_bytes: PositiveSize | None = Field(None, description="Largest member or field.")
    keep: Literal["highest", "lowest", "newest", "oldest"] | None = Field(
        None,
        description="Which end is kept: by score for a zset (highest when not given), by "
        "age for a list (newest); of a stream always the newest.",
    )
    exact: Switch = Field(
        True, description="off lets a stream trim whole nodes only (MAXLEN ~), which is cheaper."
    )
    mode: OwnMode = None
