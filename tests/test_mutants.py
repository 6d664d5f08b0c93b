"""The mutants still fit the code that they spoil."""

import pytest

from tests.mutants import MUTANTS, ROOT, TIMED_OUT, VANISHED, Mutant


@pytest.mark.parametrize("mutant", [VANISHED, TIMED_OUT, *MUTANTS], ids=lambda mutant: mutant.name)
def test_a_mutant_replaces_exactly_one_place(mutant: Mutant) -> None:
    """The text that a mutant replaces occurs once, and its test exists."""
    assert (ROOT / mutant.file).read_text().count(mutant.before) == 1
    if mutant.red:
        file, _, name = mutant.red.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()
