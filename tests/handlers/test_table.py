"""Every row that can become a Request has a handler, and no two modules answer one command."""

from types import ModuleType

from proxy.handlers import table
from proxy.handlers.table import HANDLERS


def test_no_two_modules_answer_one_command() -> None:
    """Every command has one handler, so none of them hides another."""
    modules = [value for value in vars(table).values() if isinstance(value, ModuleType)]
    assert sum(len(module.HANDLERS) for module in modules) == len(HANDLERS)
