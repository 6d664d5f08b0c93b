"""What cursors of SCAN stand for, and for how long."""

from proxy.handlers.cursors import FORGOTTEN_AFTER, SCANS_PER_USER, Position, Scans

ALL = (b"*",)
FIRST, SECOND, THIRD = (Position((0,), covered) for covered in (0, 1, 3))


def test_a_cursor_is_a_number_that_every_client_can_hold() -> None:
    """Cursors are above 0 and below 2**53, and no two scans have the same."""
    scans = Scans()
    cursors = {scans.begin("u", ALL, FIRST, 0.0) for _ in range(100)}
    assert len(cursors) == 100
    assert all(0 < cursor < 2**53 for cursor in cursors)


def test_a_page_can_be_asked_for_again() -> None:
    """The cursor that was used last leads to the same place until the next one is used."""
    scans = Scans()
    first = scans.begin("u", ALL, FIRST, 0.0)
    second = scans.turn("u", first, SECOND, 1.0)
    assert scans.find("u", first, ALL, 1.0) is FIRST
    assert scans.find("u", second, ALL, 1.0) is SECOND
    third = scans.turn("u", second, THIRD, 2.0)
    assert scans.find("u", first, ALL, 2.0) is None
    assert scans.find("u", second, ALL, 2.0) is SECOND
    assert scans.find("u", third, ALL, 2.0) is THIRD
    assert scans.turn("u", third, None, 3.0) == 0
    assert scans.find("u", third, ALL, 3.0) is THIRD


def test_many_pages() -> None:
    """The number of the page begins anew behind the largest, and the scan goes on."""
    scans = Scans()
    cursor = scans.begin("u", ALL, FIRST, 0.0)
    for number in range(20_000):
        cursor = scans.turn("u", cursor, Position((0,), number), 0.0)
        assert 0 < cursor < 2**53
    assert scans.find("u", cursor, ALL, 0.0) == Position((0,), 19_999)


def test_foreign_cursors() -> None:
    """Another user, another question and a number that nobody drew stand for nothing."""
    scans = Scans()
    cursor = scans.begin("u", ALL, FIRST, 0.0)
    assert scans.find("v", cursor, ALL, 0.0) is None
    assert scans.find("u", cursor, (b"a*",), 0.0) is None
    assert scans.find("u", cursor ^ 1 << 20, ALL, 0.0) is None
    assert scans.find("u", 1, ALL, 0.0) is None


def test_what_is_not_used_is_forgotten() -> None:
    """After a while without a page a cursor is gone, and what it took with the next scan."""
    scans = Scans()
    cursor = scans.begin("u", ALL, FIRST, 0.0)
    assert scans.find("u", cursor, ALL, FORGOTTEN_AFTER) is FIRST
    assert scans.find("u", cursor, ALL, FORGOTTEN_AFTER + 1) is None
    scans.begin("u", ALL, FIRST, FORGOTTEN_AFTER + 1)
    assert len(scans) == 1


def test_the_table_is_bounded_for_each_user() -> None:
    """Who begins scan after scan loses the oldest of their own; those that are over go first."""
    scans = Scans()
    others = scans.begin("v", ALL, FIRST, 0.0)
    slow = scans.begin("u", ALL, FIRST, 0.0)
    for _ in range(2 * SCANS_PER_USER):
        over = scans.begin("u", ALL, FIRST, 1.0)
        assert scans.turn("u", over, None, 1.0) == 0
    assert len(scans) <= SCANS_PER_USER + 1
    assert scans.find("u", slow, ALL, 1.0) is FIRST
    for _ in range(SCANS_PER_USER):
        scans.begin("u", ALL, FIRST, 2.0)
    assert scans.find("u", slow, ALL, 2.0) is None
    assert scans.find("v", others, ALL, 2.0) is FIRST
    assert len(scans) == SCANS_PER_USER + 1


def test_a_scan_that_was_forgotten_amid_a_page() -> None:
    """What comes behind a page of a scan that is gone is a cursor that is no good any more."""
    scans = Scans()
    cursor = scans.begin("u", ALL, FIRST, 0.0)
    for _ in range(SCANS_PER_USER):
        scans.begin("u", ALL, FIRST, 0.0)
    assert scans.turn("u", cursor, SECOND, 0.0) == cursor
    assert scans.find("u", cursor, ALL, 0.0) is None
