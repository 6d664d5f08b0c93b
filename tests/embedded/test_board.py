"""A table on a terminal, and where there is none."""

import io

import pytest

from proxy.embedded.board import CLEAR, UP, Board


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_table_takes_the_place_of_the_last_one() -> None:
    """The cursor goes up by as many lines as stand there, and what is told stays above."""
    screen = Terminal()
    board = Board(screen)
    board.show(["a", "b"], "line")
    board.show(["c"], "line")
    board.tell("news")
    board.show(["d"], "line")
    board.tell("end")
    first = "a\nb\n" + UP.format(2) + CLEAR + "c\n"
    assert screen.getvalue() == (
        first + UP.format(1) + CLEAR + "news\n" + "d\n" + UP.format(1) + CLEAR + "end\n"
    )


def test_no_row_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that wraps would be two for the cursor."""
    monkeypatch.setenv("COLUMNS", "10")
    screen = Terminal()
    Board(screen).show(["x" * 50], "line")
    assert screen.getvalue() == "x" * 9 + "\n"


def test_elsewhere_each_table_is_a_line_without_control_characters() -> None:
    """A file or a pipe gets what can be read afterwards."""
    file = io.StringIO()
    board = Board(file)
    board.tell("news")
    board.show(["a", "b"], "line 1")
    board.show(["a", "b"], "line 2")
    assert file.getvalue() == "news\nline 1\nline 2\n"
