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


class JournalError(StartError):
    """The journal of write-behind is used by another process, damaged, or cannot be written."""


class JournalRefused(SidecacheError):
    """An entry that was not journalled; with certain, it will not be replayed either."""

    def __init__(self, reason: str, *, certain: bool) -> None:
        super().__init__(reason)
        self.certain = certain


class OriginError(SidecacheError):
    """PostgreSQL gave no answer; `line` is what a client hears who waits for one."""

    def __init__(self, reason: str, line: bytes) -> None:
        super().__init__(reason)
        self.line = line


class OriginBusy(OriginError):
    """There is no room, or PostgreSQL gave up before it changed anything. Later it may work."""

    def __init__(self, reason: str, line: bytes | None = None) -> None:
        super().__init__(reason, ORIGIN_BUSY if line is None else line)


class OriginDown(OriginError):
    """PostgreSQL is not there, or was lost or late; `sent` where the statement may have run."""

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason, ORIGIN_DOWN)
        self.sent = sent


class OriginRefused(OriginError):
    """PostgreSQL refuses this statement with these values, now and again."""

    def __init__(self, reason: str, sqlstate: str) -> None:
        super().__init__(f"{reason} (SQLSTATE {sqlstate})", origin_refused(sqlstate))
        self.sqlstate = sqlstate


class OriginMisfit(OriginError):
    """The rows that PostgreSQL answered do not make what the policy promises."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, ORIGIN_MISFIT)


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
UNBALANCED = line(
    "ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified."
)
NOT_AN_INTEGER = line("ERR value is not an integer or out of range")
NUMKEYS = line("ERR numkeys should be greater than 0")
TOO_MANY_KEYS = line("ERR Number of keys can't be greater than number of args")
NEGATIVE_KEYS = line("ERR Number of keys can't be negative")
BAD_NUMBER_OF_KEYS = line("ERR Bad number of keys provided")
MSETEX_NUMKEYS = line("ERR invalid numkeys value")
MSETEX_PAIRS = line("ERR wrong number of key-value pairs")
TOO_MUCH_HERE = line("ERR replies of one transaction that no node gives are too large")
CROSSSLOT = line("CROSSSLOT Keys in request don't hash to the same slot")
CROSS_CLUSTER = line("CROSSSLOT Keys in request live in different clusters")
CLUSTER_DISABLED = line("ERR This instance has cluster support disabled")
INVALID_SLOT = line("ERR Invalid slot")
SELECT_REFUSED = line("ERR SELECT is not allowed in cluster mode")
DB_OUT_OF_RANGE = line("ERR DB index is out of range")
COPY_DB_REFUSED = line("ERR Copying to another database is not allowed in cluster mode")
SORT_BY_REFUSED = line("ERR BY option of SORT denied in Cluster mode.")
SORT_GET_REFUSED = line("ERR GET option of SORT denied in Cluster mode.")

NO_FLOAT = line("ERR min or max is not a float")
NO_LEXICAL_RANGE = line("ERR min or max not valid string range item")
LIMIT_BY_RANK = line(
    "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX"
)
SCORES_BY_LEX = line("ERR syntax error, WITHSCORES not supported in combination with BYLEX")
ZERO_RANK = line(
    "ERR RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use "
    "negative to start from the end of the list"
)
NEGATIVE_COUNT = line("ERR COUNT can't be negative")
NEGATIVE_MAXLEN = line("ERR MAXLEN can't be negative")

INVALID_CURSOR = line("ERR invalid cursor")
LONG_PATTERN = line("ERR the pattern is too long: keys that it may mean have other names at nodes")
SLOTS_ARE_MOVING = line("TRYAGAIN Slots are on their way to another node; go on with this cursor")
KEYS_TOO_MANY = line("ERR too many keys for one reply of KEYS: use SCAN")
FLUSH_REFUSED = line("NOPERM policy lets no cluster be flushed")


def out_of_range(least: int, most: int) -> bytes:
    return line(f"ERR value is out of range, value must between {least} and {most}")


def unknown_command(name: bytes, arguments: Sequence[bytes] = ()) -> bytes:
    """Return Redis' line for a command that does not exist, or that is not offered."""
    begin = ""
    for argument in arguments:
        if len(begin) >= QUOTED_BYTES:
            break
        begin += f"'{quoted(argument, QUOTED_BYTES - len(begin))}' "
    return line(f"ERR unknown command '{quoted(name)}', with args beginning with: {begin}")


def no_command(name: bytes) -> bytes:
    """Return Redis' line for a command that a user may not send."""
    return line(f"NOPERM this user has no permissions to run the '{quoted(name)}' command")


def unknown_subcommand(container: bytes, word: bytes | None) -> bytes:
    """Return Redis' line for an unknown sub-command; None where its word is not at hand."""
    spelled = "" if word is None else f" '{quoted(word)}'"
    return line(f"ERR unknown subcommand{spelled}. Try {quoted(container.upper())} HELP.")


def no_input_key(name: bytes) -> bytes:
    return line(f"ERR at least 1 input key is needed for '{quoted(name)}' command")


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
PAUSE_MODE = line("ERR CLIENT PAUSE mode must be WRITE or ALL")
PAUSE_NOT_AN_INTEGER = line("ERR timeout is not an integer or out of range")
PAUSE_NEGATIVE = line("ERR timeout is negative")
SLOWLOG_COUNT = line("ERR count should be greater than or equal to -1")
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


def user_not_found(name: bytes) -> bytes:
    return line(f"ERR User '{quoted(name)}' not found")


def command_not_found(name: bytes) -> bytes:
    return line(f"ERR Command '{quoted(name)}' not found")


def unknown_or_arity(container: bytes, word: bytes) -> bytes:
    """Return Redis' line for a sub-command that counts its words itself."""
    return line(
        f"ERR unknown subcommand or wrong number of arguments for '{quoted(word)}'. "
        f"Try {quoted(container.upper())} HELP."
    )


def no_samples(event: bytes) -> bytes:
    return line(f"ERR No samples available for event '{quoted(event)}'")


def unknown_node(name: bytes) -> bytes:
    return line(f"ERR Unknown node {quoted(name)}")


def no_such_user(name: bytes) -> bytes:
    return line(f"ERR No such user '{quoted(name)}'")


def unknown_category(name: bytes) -> bytes:
    return line(f"ERR Unknown category '{quoted(name)}'")


# --- Rules


def key_refused(keyspace: str | None, rule: str) -> bytes:
    """Return the line for a key that breaks a rule; names keyspace and rule, never the key."""
    where = f"keyspace '{keyspace}'" if keyspace is not None else "keys of no keyspace"
    return line(f"POLICY key refused by {where}: {rule}")


def colon_in_argument(command: str) -> bytes:
    """Return the line for an argument of a script that is none or more than its part of a key."""
    rule = "what is part of a key is not empty and has no colon"
    return line(f"POLICY argument refused by script '{command}': {rule}")


def keys_of_script(command: str) -> bytes:
    """Return the line for a script that is run with other keys than its arguments name."""
    return line(f"POLICY keys refused by script '{command}': its arguments name other ones")


def no_json(keyspace: str, fault: str) -> bytes:
    """Return the line for a value that is no JSON, with %d where it says which byte shows it."""
    rule = f"it is no valid JSON ({fault} at byte %d)"
    return line(f"POLICY value refused by keyspace '{keyspace}': {rule}")


def no_fit(keyspace: str, pointer: str, keyword: str) -> bytes:
    """Return the line for a value of which a part does not fit the keyspace's schema."""
    rule = f"its schema says otherwise at {pointer or 'its top'} ({keyword})"
    return line(f"POLICY value refused by keyspace '{keyspace}': {rule}")


def value_in_parts(keyspace: str) -> bytes:
    rule = "this command does not carry it whole, and only so it can be judged"
    return line(f"POLICY value refused by keyspace '{keyspace}': {rule}")


def too_large(keyspace: str, what: str, most: int) -> bytes:
    """Return the line for a value or member of more than so many bytes."""
    return line(f"POLICY {what} refused by keyspace '{keyspace}': it has more than {most} bytes")


def without_time(keyspace: str) -> bytes:
    """Return the line for a command that would make a key without a time to live."""
    return line(f"POLICY keyspace '{keyspace}' takes no key without a time to live")


def over_bound(owner: str, bound: str, limit: int) -> bytes:
    """Return the line for an argument that asks for too much; owner is a keyspace or a role."""
    return line(f"POLICY argument refused by {owner}: {bound} is at most {limit}")


def rate_limited(owner: str, limit: str) -> bytes:
    """Return the beginning of the line for a command beyond a limit: milliseconds follow it."""
    return line(f"RATELIMITED {owner} allows {limit}; retry_after_ms=")[:-2]


# --- Write-behind

JOURNAL_FULL = line("WBFULL Too much waits to be written to PostgreSQL; nothing was changed")
JOURNAL_REFUSED = line("DEGRADED The journal could not be written; nothing was changed")
UNKNOWN_WRITE = line("ERR Outcome unknown: the write was not confirmed in time")


def journalled(refusal: bytes) -> bytes:
    """Return the error of a write that a node refused when it was journalled already."""
    return refusal[:-2].rstrip(b".") + b"; PostgreSQL is told of it nevertheless\r\n"


def invalid_expire(command: str) -> bytes:
    return line(f"ERR invalid expire time in '{command}' command")


def unsupported_option(word: bytes) -> bytes:
    return line(f"ERR Unsupported option {quoted(word)}")


NX_AND_OTHERS = line("ERR NX and XX, GT or LT options at the same time are not compatible")
GT_AND_LT = line("ERR GT and LT options at the same time are not compatible")
NOT_A_FLOAT = line("ERR value is not a valid float")


def not_behind(keyspace: str, rule: str) -> bytes:
    """Return the line for a write that cannot be told to PostgreSQL later."""
    return line(f"POLICY write refused by keyspace '{keyspace}': {rule}")


# --- Pub/sub

NO_CHANNEL = line(
    "NOPERM this user has no permissions to access one of the channels used as arguments"
)
LONG_CHANNEL = line("ERR a channel's name is too long")
TOO_MANY_SUBSCRIPTIONS = line("ERR too many subscriptions")
NOT_SUBSCRIBED = line("CLUSTERDOWN No node that can be listened to is reachable")


def in_subscriber_mode(name: bytes) -> bytes:
    return line(
        f"ERR Can't execute '{quoted(name)}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT "
        "/ RESET are allowed in this context"
    )


# --- Nodes

# Nothing ran, or nothing but a read: trying again is safe, so the word says so.
TIMEOUT = line("TRYAGAIN The node did not answer in time; nothing was changed")
CLUSTERDOWN = line("CLUSTERDOWN Hash slot not served: no node for it is reachable")
OVERLOADED = line("TRYAGAIN The node's queue is full")
# ERR, because no client library repeats it by itself: TRYAGAIN, CLUSTERDOWN and LOADING would be
# sent again by some, and the command might run twice.
UNKNOWN_OUTCOME = line("ERR Outcome unknown: the node was lost after the command was sent to it")

# A node that has begun to reply has run the command.
REPLY_TOO_LARGE = line("ERR The reply is larger than the proxy may keep; the command was run")


def partial(error: bytes, succeeded: int, parts: int) -> bytes:
    """Return the error of one part of a split command, telling how many others took effect."""
    text = error[:-2].decode("latin-1").rstrip(".")
    return f"{text} ({succeeded} of {parts} parts succeeded)\r\n".encode("latin-1")


# --- PostgreSQL

# Nothing for a key would be taken for "no such row", and the application would ask PostgreSQL
# itself: shed load is an error, of a word that clients repeat or pass on but never reconnect for.
ORIGIN_BUSY = line("TRYAGAIN PostgreSQL has no room for this now")
ORIGIN_IN_HAND = line("TRYAGAIN Another transaction of PostgreSQL is changing the row")
ORIGIN_DOWN = line("PGDOWN PostgreSQL cannot be reached")
ORIGIN_MISFIT = line("ERR the rows of PostgreSQL do not make the value of this key")
ORIGIN_UNKNOWN = line("ERR Outcome unknown: PostgreSQL was lost after the write was sent to it")
DEGRADED = line("DEGRADED this command needs Redis, which is away")


def no_row(keyspace: str) -> bytes:
    return line(f"POLICY write refused by keyspace '{keyspace}': PostgreSQL has no such row")


NOT_THE_OWNER = line("LOCKOWNER this lock is held, and not by this connection")


NOT_TEXT = line("ERR an owner, a lock and a booking are text, not empty, and an owner not too long")
TOO_MANY_LOCKS = line("ERR too many locks for one command")

_LOCK_RULES = {
    "command": "a lock is taken by SET NX, read, extended by EXPIRE and released by DEL",
    "queue": "its locks have no queue",
    "value": "it names no owner of the lock, or one that is too long",
    "limit": "its owner holds as many locks as it may",
    "scopes": "locks of one command are counted together, within one scope",
}


def lock_refused(keyspace: str, what: str) -> bytes:
    """Return the line for what means nothing to a lock, or goes too far: of _LOCK_RULES."""
    refused = {"queue": "command", "limit": "write", "scopes": "key"}.get(what, what)
    return line(f"POLICY {refused} refused by keyspace '{keyspace}': {_LOCK_RULES[what]}")


def not_installed(keyspace: str) -> bytes:
    """Return the line for locks for which PostgreSQL has no functions, or those of other rules."""
    return line(
        f"ERR PostgreSQL lacks the functions for locks of keyspace '{keyspace}' by these policies; "
        "nothing was changed; run sidecache sql install"
    )


def no_statement(keyspace: str) -> bytes:
    """Return the line for a write that a keyspace's statement cannot carry out."""
    rule = "its statement for PostgreSQL cannot do this"
    return line(f"POLICY command refused by keyspace '{keyspace}': {rule}")


def no_column(keyspace: str) -> bytes:
    rule = "its statement for PostgreSQL does not write all of these fields"
    return line(f"POLICY value refused by keyspace '{keyspace}': {rule}")


# A lease and a marker have to be in the slot of their key.
ALONE = "nothing can stand beside a key of such braces"


def not_filled(keyspace: str) -> bytes:
    """Return the line for what needs all of a key in Redis, where nobody may put it."""
    return line(f"POLICY command refused by keyspace '{keyspace}': {ALONE}")


def not_in_transaction(keyspace: str) -> bytes:
    rule = "its writes go to PostgreSQL, which takes no part in a transaction"
    return line(f"POLICY command refused by keyspace '{keyspace}': {rule}")


def origin_refused(sqlstate: str) -> bytes:
    """Return the line for a statement that PostgreSQL refuses; its own words may quote rows."""
    return line(f"ERR PostgreSQL refused this (SQLSTATE {quoted(sqlstate.encode())})")


# --- Transactions

NESTED_MULTI = line("ERR MULTI calls can not be nested")
WATCH_IN_MULTI = line("ERR WATCH inside MULTI is not allowed")
EXEC_WITHOUT_MULTI = line("ERR EXEC without MULTI")
DISCARD_WITHOUT_MULTI = line("ERR DISCARD without MULTI")
NOT_IN_TRANSACTION = line("ERR Command not allowed inside a transaction")
EXECABORT = line("EXECABORT Transaction discarded because of previous errors.")
TRANSACTION_OUTLIVED = line("EXECABORT Transaction discarded because the rules have changed")
TRANSACTION_EXPIRED = line("EXECABORT Transaction discarded because it was open for too long")


def discarded(error: bytes) -> bytes:
    """Return the line for a transaction that ends because of an error of EXEC itself."""
    reason = error[1:-2].removeprefix(b"ERR ").decode("latin-1")
    return line(f"EXECABORT Transaction discarded because of: {reason}")


def transaction_too_large(most: int, what: str) -> bytes:
    return line(f"ERR A transaction holds at most {most} {what}")


# --- Clients that have a connection of their own

MAX_BLOCKED = line("ERR max number of blocked clients reached")
MAX_WATCHING = line("ERR max number of watching clients reached")
MAX_WATCHED = line("ERR max number of watched keys reached")
UNBLOCKED = line("UNBLOCKED client unblocked via CLIENT UNBLOCK")
UNBLOCK_REASON = line("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")

# --- Connections

INTERNAL = line("ERR Internal error of the proxy; its log says more")
MAX_CLIENTS = line("ERR max number of clients reached")

# What the data plane answers without asking Python.
DATA_PLANE = Errors(
    noauth=NOAUTH,
    no_key=line("NOPERM No permissions to access a key"),
    long_key=line("POLICY key refused: it is longer than the keys of this role may be"),
    crossslot=CROSSSLOT,
    cross_cluster=CROSS_CLUSTER,
    clusterdown=CLUSTERDOWN,
    syntax=SYNTAX,
    unbalanced=UNBALANCED,
    overloaded=OVERLOADED,
    unmatched=key_refused(None, "a key must belong to a keyspace"),
    wrong_type=line("WRONGTYPE Operation against a key holding the wrong kind of value"),
    bad_key=key_refused(None, "it is too long or has control characters"),
    reserved=key_refused(None, "names that begin with sidecache: are the proxy's own"),
)
