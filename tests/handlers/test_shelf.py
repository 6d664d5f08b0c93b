"""Bodies that are kept, and the limits of that."""

from proxy.handlers.shelf import Shelf


def test_what_was_used_least_lately_makes_room() -> None:
    """One body too many takes the place of the one that nobody has asked for since."""
    shelf = Shelf(most=2)
    shelf.put(b"a", b"1")
    shelf.put(b"b", b"22")
    assert shelf.get(b"a") == b"1"
    shelf.put(b"c", b"333")
    assert [shelf.get(name) for name in (b"a", b"b", b"c")] == [b"1", None, b"333"]
    assert (len(shelf), shelf.bytes) == (2, 4)


def test_bytes_are_bounded() -> None:
    """Ten thousand large bodies take no more room than the shelf has."""
    shelf = Shelf(most_bytes=100_000)
    for number in range(10_000):
        shelf.put(b"%d" % number, b"x" * 4_000)
        assert shelf.bytes <= 100_000
    assert len(shelf) == 25
    shelf.put(b"vast", b"x" * 100_001)
    assert shelf.get(b"vast") is None
    assert len(shelf) == 25


def test_a_body_has_one_place() -> None:
    """Put again it replaces itself; dropped it leaves nothing behind."""
    shelf = Shelf()
    shelf.put(b"a", b"1")
    shelf.put(b"a", b"333")
    shelf.put(b"b", b"22")
    assert (list(shelf.bodies().values()), shelf.bytes) == ([b"333", b"22"], 5)
    shelf.drop(b"a")
    shelf.drop(b"a")
    assert shelf.bytes == 2
    shelf.forget_all()
    assert (len(shelf), shelf.bytes) == (0, 0)


def test_what_is_forgotten_meanwhile_does_not_arrive() -> None:
    """A body on its way is not kept when it, or all, were forgotten since; another one is."""
    shelf = Shelf()
    shelf.put(b"a", b"0")
    arrival = shelf.expect()
    assert shelf.forget(b"a") == {b"a": b"0"}
    assert shelf.forget(b"a") == {}
    shelf.arrive(arrival, {b"a": b"1", b"b": b"2"})
    assert dict(shelf.bodies()) == {b"b": b"2"}
    arrival = shelf.expect()
    assert shelf.forget_all() == {b"b": b"2"}
    shelf.arrive(arrival, {b"b": b"2"})
    assert len(shelf) == 0
    shelf.arrive(shelf.expect(), {b"b": b"2"})
    assert len(shelf) == 1
