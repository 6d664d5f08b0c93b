"""Every handler by the name of its command's row."""

from proxy.handlers import (
    clients,
    connection,
    fanout,
    guarded,
    introspection,
    local,
    renamed,
)
from proxy.handlers.table import HANDLERS


def test_no_two_modules_answer_one_command() -> None:
    """Every command has one handler, so none of them hides another."""
    modules = [clients, connection, fanout, guarded, introspection, local, renamed]
    assert sum(len(module.HANDLERS) for module in modules) == len(HANDLERS)
