"""Where PostgreSQL is and what may be asked of it: `database` of sidecache.yaml as values.

`config` reads it; rooms that speak to PostgreSQL take it from there.
"""

from dataclasses import dataclass, field

from proxy.secret import Secret
from proxy.settings import Pace


@dataclass(frozen=True)
class Database:
    """PostgreSQL, the origin; see `settings.DatabaseBlock`. Times in seconds."""

    url: Secret
    direct_url: Secret
    replicas: tuple[Secret, ...] = ()
    prepared: bool = True
    connections: int = 8
    queue: int = 64
    patience: float = 0.1
    timeout: float = 1.0
    lock_timeout: float = 0.25
    connect_timeout: float = 1.0
    pace: Pace = field(default_factory=Pace)

    @property
    def urls(self) -> tuple[Secret, ...]:
        return (self.url, self.direct_url, *self.replicas)
