"""Every handler by the name of its command's row; b"" answers what has no row.

The session looks up here. A test demands one handler for every row that can become a Request, so
whatever else is asked for is a command that a script of the policies offers.
"""

from proxy.handlers import (
    Handler,
    acl,
    blocked,
    blocking,
    clients,
    connection,
    diagnostics,
    face,
    fanout,
    flow,
    functions,
    guarded,
    information,
    introspection,
    keyspace,
    local,
    monitor,
    pubsub,
    renamed,
    replicas,
    scan,
    scripts,
    slowlog,
    transactions,
    watch,
)
from proxy.handlers.offered import answer


class Table(dict[bytes, Handler]):
    """Handlers by name, and one for all scripts."""

    def __missing__(self, name: bytes) -> Handler:
        return answer


HANDLERS = Table(
    {
        **connection.HANDLERS,
        **clients.HANDLERS,
        **local.HANDLERS,
        **introspection.HANDLERS,
        **guarded.HANDLERS,
        **face.HANDLERS,
        **information.HANDLERS,
        **acl.HANDLERS,
        **diagnostics.HANDLERS,
        **fanout.HANDLERS,
        **flow.HANDLERS,
        **monitor.HANDLERS,
        **slowlog.HANDLERS,
        **renamed.HANDLERS,
        **transactions.HANDLERS,
        **scripts.HANDLERS,
        **functions.HANDLERS,
        **blocked.HANDLERS,
        **blocking.HANDLERS,
        **replicas.HANDLERS,
        **watch.HANDLERS,
        **scan.HANDLERS,
        **keyspace.HANDLERS,
        **pubsub.HANDLERS,
    }
)
