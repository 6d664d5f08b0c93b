"""Every error line that a client may get from us, and the exceptions that an operator may see.

Towards clients an error is bytes, CR LF included; words are Redis' own where Redis has some,
because client libraries decide by the first word and some by the text. Towards the operator it is
an exception of one tree. Everything above floor 0 takes its errors here.

Always true: a line holds no CR, LF or other control character but its end, and of what a client
sent at most `QUOTED_BYTES` bytes, escaped: a name cannot forge a reply.
"""

from collections.abc import Sequence

from proxy.wire.rules import Errors

# Redis quotes as much of an unknown command's name, and as much of its arguments.
QUOTED_BYTES = 128


class SidecacheError(Exception):
    """Something that an operator must know, worded so that it can be acted on."""


class ConfigError(SidecacheError):
    """A mistake in sidecache.yaml, the environment or the flags."""


class PolicyError(SidecacheError):
    """A mistake in the policy files."""


class StartError(SidecacheError):
    """Something that is needed to run is missing or cannot be started."""


def quoted(text: bytes, limit: int = QUOTED_BYTES) -> str:
    """Return a client's bytes as printable ASCII of at most limit characters."""
    plain = text[:limit].decode("latin-1")
    if plain.isascii() and plain.isprintable():
        return plain
    escaped = "".join(c if " " <= c <= "~" else f"\\x{ord(c):02x}" for c in plain)
    return escaped[:limit]


def line(text: str) -> bytes:
    """Return an error line; text begins with the error's code."""
    return f"-{text}\r\n".encode("ascii", "backslashreplace")


# --- Commands

SYNTAX = line("ERR syntax error")
NOT_AN_INTEGER = line("ERR value is not an integer or out of range")
NUMKEYS = line("ERR numkeys should be greater than 0")
CROSSSLOT = line("CROSSSLOT Keys in request don't hash to the same slot")
CROSS_CLUSTER = line("CROSSSLOT Keys in request live in different clusters")
CLUSTER_DISABLED = line("ERR This instance has cluster support disabled")
SELECT_REFUSED = line("ERR SELECT is not allowed in cluster mode")
DB_OUT_OF_RANGE = line("ERR DB index is out of range")
COPY_DB_REFUSED = line("ERR Copying to another database is not allowed in cluster mode")
SORT_BY_REFUSED = line("ERR BY option of SORT denied in Cluster mode.")
SORT_GET_REFUSED = line("ERR GET option of SORT denied in Cluster mode.")
BLOCK_REFUSED = line("ERR BLOCK is not offered here: read without BLOCK and ask again")


def unknown_command(name: bytes, arguments: Sequence[bytes] = ()) -> bytes:
    """Return Redis' line for a command that does not exist, or that is not offered."""
    begin = ""
    for argument in arguments:
        if len(begin) >= QUOTED_BYTES:
            break
        begin += f"'{quoted(argument, QUOTED_BYTES - len(begin))}' "
    return line(f"ERR unknown command '{quoted(name)}', with args beginning with: {begin}")


def unknown_subcommand(container: bytes, word: bytes | None) -> bytes:
    """Return Redis' line for an unknown sub-command; None where its word is not at hand."""
    spelled = "" if word is None else f" '{quoted(word)}'"
    return line(f"ERR unknown subcommand{spelled}. Try {quoted(container.upper())} HELP.")


def wrong_arity(name: bytes) -> bytes:
    return line(f"ERR wrong number of arguments for '{quoted(name)}' command")


# --- Identity

NOAUTH = line("NOAUTH Authentication required.")
NOAUTH_HELLO = line(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the "
    "HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select "
    "the RESP protocol version at the same time"
)
WRONGPASS = line("WRONGPASS invalid username-password pair or user is disabled.")
NO_PASSWORD_SET = line(
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
NOPROTO = line("NOPROTO unsupported protocol version")
PROTOCOL_NOT_AN_INTEGER = line("ERR Protocol version is not an integer or out of range")
BAD_CLIENT_NAME = line("ERR Client names cannot contain spaces, newlines or special characters.")
LONG_CLIENT_NAME = line("ERR Client names are limited to 1024 bytes.")


def bad_hello_option(option: bytes) -> bytes:
    return line(f"ERR Syntax error in HELLO option '{quoted(option)}'")


def bad_client_info(option: bytes) -> bytes:
    return line(f"ERR {quoted(option)} cannot contain spaces, newlines or special characters.")


def unrecognized_option(option: bytes) -> bytes:
    return line(f"ERR Unrecognized option '{quoted(option)}'")


# --- Introspection

NO_SUCH_CLIENT = line("ERR No such client")
BAD_CLIENT_ID = line("ERR Invalid client ID")
CLIENT_ID_NOT_POSITIVE = line("ERR client-id should be greater than 0")
MAXAGE_NOT_POSITIVE = line("ERR maxage should be greater than 0")
GENPASS_BITS = line(
    "ERR ACL GENPASS argument must be the number of bits for the output password, "
    "a positive number up to 4096"
)
INVALID_COMMAND = line("ERR Invalid command specified")
INVALID_COMMAND_ARITY = line("ERR Invalid number of arguments specified for command")
INVALID_COMMAND_ARGUMENTS = line("ERR Invalid arguments specified for command")
COMMAND_WITHOUT_KEYS = line("ERR The command has no key arguments")


def unknown_client_type(word: bytes) -> bytes:
    return line(f"ERR Unknown client type '{quoted(word)}'")


def no_such_user(name: bytes) -> bytes:
    return line(f"ERR No such user '{quoted(name)}'")


def unknown_category(name: bytes) -> bytes:
    return line(f"ERR Unknown category '{quoted(name)}'")


# --- Rules


def key_refused(keyspace: str | None, rule: str) -> bytes:
    """Return the line for a key that breaks a rule; names keyspace and rule, never the key."""
    where = f"keyspace '{keyspace}'" if keyspace is not None else "keys of no keyspace"
    return line(f"POLICY key refused by {where}: {rule}")


# --- Nodes

# Nothing ran, or nothing but a read: trying again is safe, so the word says so.
TIMEOUT = line("TRYAGAIN The node did not answer in time; nothing was changed")
CLUSTERDOWN = line("CLUSTERDOWN Hash slot not served: no node for it is reachable")
OVERLOADED = line("TRYAGAIN The node's queue is full")
# ERR, because no client library repeats it by itself: TRYAGAIN, CLUSTERDOWN and LOADING would be
# sent again by some, and the command might run twice.
UNKNOWN_OUTCOME = line("ERR Outcome unknown: the node was lost after the command was sent to it")


def partial(error: bytes, succeeded: int, parts: int) -> bytes:
    """Return the error of one part of a split command, telling how many others took effect."""
    text = error[:-2].decode("latin-1").rstrip(".")
    return f"{text} ({succeeded} of {parts} parts succeeded)\r\n".encode("latin-1")


# --- Connections

INTERNAL = line("ERR Internal error of the proxy; its log says more")
MAX_CLIENTS = line("ERR max number of clients reached")

# What the data plane answers without asking Python.
DATA_PLANE = Errors(
    noauth=NOAUTH,
    noperm=line("NOPERM this user has no permissions to run this command"),
    crossslot=CROSSSLOT,
    cross_cluster=CROSS_CLUSTER,
    clusterdown=CLUSTERDOWN,
    bad_numkeys=NUMKEYS,
    syntax=SYNTAX,
    overloaded=OVERLOADED,
    unmatched=key_refused(None, "a key must belong to a keyspace"),
    bad_key=key_refused(None, "it is too long or has control characters"),
)
