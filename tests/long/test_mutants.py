"""Faults put into a copy of the code turn the tests red that are there to see them."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, Mutant, build

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
async def test_a_mutant_turns_its_test_red(tmp_path: Path, mutant: Mutant) -> None:
    """The named test fails on the faulty copy."""
    tree = await asyncio.to_thread(build, mutant, tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pytest", "-x", "-q", mutant.red,
        cwd=tree, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    text = out.decode(errors="replace")
    assert process.returncode == 1, f"{mutant.fault}: {text[-1500:]}"
    assert "1 failed" in text, text[-1500:]
    assert "ServerFailed" not in text, "the copy does not start at all"
