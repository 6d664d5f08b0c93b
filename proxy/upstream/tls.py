"""TLS towards the nodes of one cluster, for data connections and for those of redis-py.

The pool makes one `ClientTLS` per cluster. Both kinds of connection check a certificate against the
same name, and take renewed files from the next connection on.
"""

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis

from proxy.config import TLS, Cluster
from proxy.errors import StartError


class ClientTLS:
    """TLS towards the nodes of one cluster; none when its URLs are redis://."""

    def __init__(self, config: Cluster) -> None:
        self._config = config
        self.context = None if config.tls is None else _context(config.tls)

    def check(self) -> None:
        """Raise StartError where the files that lie there now could not be taken; may take long."""
        if self._config.tls is not None:
            self._readable(_context)

    def renew(self) -> None:
        """Take the files that lie there now, for connections to come, once `check` has read them.

        Our certificate is replaced, and authorities are added: those of before stay until a start.
        """
        context = self.context
        if context is not None:
            self._readable(lambda tls: _load(context, tls))

    def _readable(self, use: Callable[[TLS], object]) -> None:
        try:
            if self._config.tls is not None:
                use(self._config.tls)
        except OSError as error:
            raise StartError(
                f"certificates of cluster {self._config.name} cannot be taken: "
                f"{error.strerror or error}"
            ) from error

    def server_name(self, host: str) -> str | None:
        """Return the name that a node's certificate must carry."""
        tls = self._config.tls
        return None if tls is None else tls.server_name or host

    def client(
        self, host: str, port: int, options: Mapping[str, Any], hostname: str | None = None
    ) -> Redis:
        """Return a client of redis-py for one node or Sentinel, used once."""
        kind: type[Connection] = Connection
        if self.context is not None:
            name = self.server_name(hostname or host)
            kind, options = _TLSConnection, {**options, "context": self.context, "name": name}
        # A pool of our own comes without redis-py's retries, whose pauses are longer than ours.
        pool = ConnectionPool(connection_class=kind, host=host, port=port, **options)
        return Redis.from_pool(pool)


def _context(tls: TLS) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)
    return context


def _load(context: ssl.SSLContext, tls: TLS) -> None:
    if tls.ca is not None:
        context.load_verify_locations(tls.ca)
    if tls.cert is not None:
        context.load_cert_chain(tls.cert, tls.key)


class _TLSConnection(Connection):
    """Checks the certificate against the name that data connections check it against.

    Until redis-py lets one say that name where the address is another.
    """

    def __init__(self, *, context: ssl.SSLContext, name: str, **options: Any) -> None:
        super().__init__(**options)
        self._arguments = {"ssl": context, "server_hostname": name}

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), **self._arguments}
