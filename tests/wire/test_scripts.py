"""What a script's command becomes: the words of its run."""

from proxy.wire.scripts import Filled, Script, run_of

SCRIPT = Script(
    digest=b"d" * 40,
    body=b"return 1",
    keys=((b"seat:", Filled(0, False), b":", Filled(1, False)), (b"log:", Filled(2, True))),
    arguments=("event", "seat", "path"),
    more="others",
    reads=False,
    mapped=False,
    lock=None,
    colon_error=b"",
    keys_error=b"",
)


def test_keys_are_made_of_arguments() -> None:
    """Digest, number of keys, the keys in their order, then all arguments as they came."""
    run = SCRIPT.run_of([b"e", b"s", b"a:b", b"x"])
    assert run == [b"d" * 40, b"2", b"seat:e:s", b"log:a:b", b"e", b"s", b"a:b", b"x"]
    assert run_of(SCRIPT, [b"TAKE", b"e", b"s", b"a:b", b"x"]) == [b"TAKE", *run]


def test_an_argument_is_one_part_of_a_key() -> None:
    """A colon fits only into what stands for all that follows."""
    assert SCRIPT.run_of([b"e:1", b"s", b"a"]) is None
    assert SCRIPT.run_of([b"e", b":", b"a"]) is None
    words = [b"TAKE", b"e", b":", b"a"]
    assert run_of(SCRIPT, words) is words
    assert run_of(None, words) is words


def test_what_reads_is_run_as_a_read() -> None:
    """Nodes refuse the writes of a script that says that it only reads."""
    assert SCRIPT.command == b"EVALSHA"
    assert SCRIPT._replace(reads=True).command == b"EVALSHA_RO"
