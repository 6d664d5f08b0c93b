"""A table that stays in its place on a terminal while its figures change; elsewhere plain lines.

Used by the demo's outage. Nothing but two control sequences that every terminal has: cursor up,
and clear to the end of the screen.
"""

import shutil
from collections.abc import Sequence
from typing import TextIO

UP = "\x1b[{}A\r"
CLEAR = "\x1b[J"


class Board:
    """One table at the end of what a stream shows."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._height = 0  # lines of the table that stands there now

    def show(self, table: Sequence[str], line: str) -> None:
        """Put a table in the place of the last one; where nothing can be replaced, say a line."""
        if not self._live:
            print(line, file=self._stream, flush=True)
            return
        # A line that wraps would be two to the terminal, and the next table would stand too low.
        width = max(1, shutil.get_terminal_size().columns - 1)
        rows = [row[:width] for row in table]
        self._stream.write(self._cleared() + "".join(f"{row}\n" for row in rows))
        self._stream.flush()
        self._height = len(rows)

    def tell(self, text: str) -> None:
        """Say something that stays, above the table."""
        self._stream.write(self._cleared() + text + "\n")
        self._stream.flush()
        self._height = 0

    def _cleared(self) -> str:
        return UP.format(self._height) + CLEAR if self._height else ""
