"""What changes from one set of policies to another, by meaning and not by text.

Used by the verb `diff`, and by whoever puts new rules in force. Compared is what holds in the end:
each keyspace with what it inherits, lists without an order as sets, `1h` and `3600s` as one. A line
says what changes and where that stands now:

    keyspace seat_lock: ttl.max 900s -> 600s (policies/seats.yaml:12)

Always true: no difference in meaning, no line; the lines are bounded in length and in number.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic.fields import FieldInfo

from proxy import units
from proxy.policy.blocks import HashTagWord
from proxy.policy.model import Keyspace, Policies, Role, Shared
from proxy.policy.patterns import Pattern
from proxy.validation import Location, Strict

# A log takes as many lines of one reload, and a reader looks at the files long before that.
MAX_LINES = 200

# Longer texts, such as SQL, are told by the place where they stand.
MAX_TEXT = 60  # characters

# Of a list, so many that are lost and so many that are new.
MAX_ITEMS = 10

# Names of keyspaces that one line lists, where many change alike because the defaults do.
MAX_NAMES = 3

# How a parsed quantity is written again.
_WRITTEN: Mapping[Any, Callable[[Any], str]] = {
    units.parse_duration: units.show_duration,
    units.parse_positive_duration: units.show_duration,
    units.parse_size: units.show_size,
    units.parse_percentage: units.show_percentage,
    units.parse_switch: lambda value: "on" if value else "off",
}

# Lists whose order means nothing, by the last word of their path.
_SETS = {"allow", "deny", "commands", "keyspaces", "channels", "publish", "subscribe", "flush"}


class _Change(NamedTuple):
    """One field that differs: its path below the thing that has it."""

    path: Location
    text: str  # "900s -> 600s", "+ KEYS", "new", "gone"


def differences(old: Policies, new: Policies, limit: int = MAX_LINES) -> list[str]:
    """Return a line for each difference; of more than limit, the first and how many follow."""
    lines = list(dict.fromkeys(_lines(old, new)))
    if len(lines) <= limit:
        return lines
    return [*lines[:limit], f"and {len(lines) - limit} differences more"]


def _lines(old: Policies, new: Policies) -> Iterator[str]:
    for part in ("defaults", "commands"):
        for change in _compare((), getattr(old, part), getattr(new, part)):
            yield _line(part, change, new.place((part, *change.path)))
    yield from _keyspace_lines(old, new)
    for part in ("roles", "channels", "scripts"):
        olds, news = _named(old, part), _named(new, part)
        for name in dict.fromkeys((*olds, *news)):
            own = f"{part.removesuffix('s')} {name}"
            for change in _compare((), olds.get(name), news.get(name)):
                where = (old if name not in news else new).place((part, name, *change.path))
                yield _line(own, change, where)
    for name in old.bodies.keys() & new.bodies.keys():
        if old.bodies[name] != new.bodies[name]:
            where = new.place(("scripts", name, "file"))
            yield _line(f"script {name}", _Change(("file",), "has another text"), where)


def _named(policies: Policies, part: str) -> Mapping[str, Strict]:
    """Return the entries of a part; the role of whoever is given none is always there."""
    entries: Mapping[str, Strict] = getattr(policies, part)
    return {"default": Role(), **entries} if part == "roles" else entries


def _line(subject: str, change: _Change, where: str) -> str:
    field = _path(change.path)
    # Who looks for a line does not need its column.
    where = where.rpartition(":")[0] or where
    return f"{subject}: {field}{' ' * bool(field)}{change.text}{f' ({where})' * bool(where)}"


def _path(path: Location) -> str:
    return ".".join(str(part) for part in path)


def _keyspace_lines(old: Policies, new: Policies) -> Iterator[str]:
    """Yield the differences of keyspaces; what many inherit from the defaults is told once."""
    inherited: dict[_Change, list[str]] = {}
    own: list[str] = []
    for name in dict.fromkeys((*old.keyspaces, *new.keyspaces)):
        before, after = (_settled(policies, name) for policies in (old, new))
        for change in _compare((), before, after):
            if after is None:
                own.append(_line(f"keyspace {name}", change, old.place(("keyspaces", name))))
            elif before is not None and _is_inherited(old, new, name, change.path):
                inherited.setdefault(change, []).append(name)
            else:
                where = new.place(("keyspaces", name, *change.path))
                own.append(_line(f"keyspace {name}", change, where))
    for change, names in inherited.items():
        shown = ", ".join(names[:MAX_NAMES])
        if len(names) > MAX_NAMES:
            shown += f" and {len(names) - MAX_NAMES} more"
        where = new.place(("defaults", *change.path))
        yield _line(f"keyspace{'s' * (len(names) > 1)} {shown}", change, where)
    yield from own


def _settled(policies: Policies, name: str) -> Keyspace | None:
    """Return a keyspace with what it inherits, and what follows where nothing is said."""
    own = policies.effective.get(name)
    if own is None:
        return None
    changed: dict[str, object] = {"evict": own.evict or ("never" if own.durable else "lru")}
    if own.ttl.missing is None:
        missing = "allow" if own.ttl.default is None else "apply"
        changed["ttl"] = own.ttl.model_copy(update={"missing": missing})
    return own.model_copy(update=changed)


def _is_inherited(old: Policies, new: Policies, name: str, path: Location) -> bool:
    """Return whether a field is what the defaults say, and the keyspace says nothing of it."""
    if path[0] not in Shared.model_fields:
        return False
    if any(_says(policies.keyspaces[name], path) for policies in (old, new)):
        return False
    return _says(old.defaults, path) or _says(new.defaults, path)


def _says(block: object, path: Location) -> bool:
    """Return whether a field is written in a block, or in one of its blocks."""
    for part in path:
        if not isinstance(block, Strict):
            return True
        name = next((n for n, f in type(block).model_fields.items() if (f.alias or n) == part), "")
        if name not in block.model_fields_set:
            return False
        block = getattr(block, name)
    return True


def _compare(
    path: Location, old: object, new: object, field: FieldInfo | None = None
) -> Iterator[_Change]:
    """Yield the fields that differ between two values at one path."""
    if old == new:
        return
    if not path and (old is None or new is None):
        yield _Change((), "new" if old is None else "gone")
    elif isinstance(old, Strict) and isinstance(new, Strict):
        for name, own in type(new).model_fields.items():
            at = (*path, own.alias or name)
            yield from _compare(at, getattr(old, name), getattr(new, name), own)
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _compare((*path, key), old.get(key), new.get(key), field)
    elif _is_list(old) and _is_list(new):
        yield from _compare_lists(path, old, new, field)
    else:
        before, after = _show(old, field), _show(new, field)
        if before != after:
            yield _Change(path, _arrow(before, after))


def _is_list(value: object) -> bool:
    return isinstance(value, tuple) and not hasattr(value, "_fields")


def _compare_lists(
    path: Location, old: Any, new: Any, field: FieldInfo | None
) -> Iterator[_Change]:
    """Yield what a list lost and gained; where only the order changes, that counts too."""
    # Names of commands are the same in any case.
    before = {shown.casefold(): shown for item in old if (shown := _show(item, field))}
    after = {shown.casefold(): shown for item in new if (shown := _show(item, field))}
    lost = [f"- {_short(shown)}" for word, shown in before.items() if word not in after]
    gained = [f"+ {_short(shown)}" for word, shown in after.items() if word not in before]
    if lost or gained:
        yield _Change(path, ", ".join((*lost[:MAX_ITEMS], *gained[:MAX_ITEMS])))
    elif path[-1] not in _SETS and list(before) != list(after):
        yield _Change(path, "in another order")


def _arrow(before: str, after: str) -> str:
    if len(before) > MAX_TEXT and len(after) > MAX_TEXT:
        return "is another text"
    return f"{_short(before)} -> {_short(after)}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:MAX_TEXT])
    return f"{shown}…" if len(text) > MAX_TEXT else shown


def _show(value: object, field: FieldInfo | None) -> str:
    """Return a value as an operator would write it."""
    if value is None:
        return "none"
    if isinstance(value, Pattern):
        return _show_pattern(value)
    if isinstance(value, HashTagWord):
        return f"{{literal: {value.literal}}}"
    if isinstance(value, units.Rate):
        return units.show_rate(value)
    if isinstance(value, Strict):
        given = (
            f"{own.alias or name}: {_show(getattr(value, name), own)}"
            for name, own in type(value).model_fields.items()
            if getattr(value, name) != own.get_default()
        )
        return f"{{{', '.join(given)}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_show(item, field)}' for key, item in value.items())}}}"
    if _is_list(value):
        return f"[{', '.join(_show(item, field) for item in value)}]"  # type: ignore[attr-defined]
    writer = None if field is None else _writer(field)
    if writer is not None:
        return writer(value)
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _show_pattern(pattern: Pattern) -> str:
    """Return a pattern in the one spelling that all spellings of the same mean."""
    return "".join(
        part.decode().replace("{", "{{").replace("}", "}}")
        if isinstance(part, bytes)
        else f"{{{part.name}}}"
        if part.kind == "text"
        else f"{{{part.name}:{part.kind}}}"
        for part in pattern.parts
    )


def _writer(field: FieldInfo) -> Callable[[Any], str] | None:
    """Return how the quantity of a field is written."""
    return _writer_of((*field.metadata, *_annotations(field.annotation)))


def _annotations(annotation: Any) -> Iterator[Any]:
    """Yield what stands in Annotated, however deep within a union or a list."""
    for argument in get_args(annotation):
        yield argument
        yield from _annotations(argument)


def _writer_of(found: tuple[Any, ...]) -> Callable[[Any], str] | None:
    parsers = (getattr(each, "func", None) for each in found)
    return next((_WRITTEN[parser] for parser in parsers if parser in _WRITTEN), None)
