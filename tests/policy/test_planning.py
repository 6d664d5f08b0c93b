"""Policies to the plans of what happens in PostgreSQL."""

from pathlib import Path

from proxy.plans import Dependency, Parameter, plans_in
from proxy.policy import compiler, sql
from proxy.policy.planning import watches_of

CLUSTERS = ("locks", "cache")
SHIPPED = Path(__file__).parents[2] / "policies"


def test_shipped_policies_have_plans_for_what_postgres_backs() -> None:
    """Keyspaces with an origin, a written table or a restore have a plan, others have none."""
    ruleset, _ = compiler.from_files(SHIPPED, CLUSTERS)
    named = {plan.name for plan in plans_in(ruleset).by_keyspace.values()}
    assert {"event", "venue", "org", "user_prefs", "user_perms", "event_availability"} <= named
    assert {"draft_booking", "user_activity"} <= named
    assert "session" not in named


def test_a_parameter_becomes_a_number_with_the_type_of_its_segment(tmp_path: Path) -> None:
    """The text is fixed at load: one number per name, cast where the key says the type."""
    (tmp_path / "a.yaml").write_text(
        "keyspaces:\n"
        "  a:\n"
        "    key: a:{id:int}:{date:date}\n"
        "    type: hash\n"
        "    origin:\n"
        "      read: SELECT x, ':id' AS y FROM a WHERE id = :id AND d = :date OR id > :id\n"
    )
    ruleset, _ = compiler.from_files(tmp_path, CLUSTERS)
    read = plans_in(ruleset).by_keyspace[0].read
    assert read is not None
    assert read.text == (
        "SELECT * FROM (\n"
        "SELECT x, ':id' AS y FROM a WHERE id = $1::bigint AND d = $2::date OR id > $1::bigint\n"
        ") AS rows LIMIT 2"
    )
    assert read.parameters == (Parameter("id", "int"), Parameter("date", "date"))
    assert read.name == "a read"
    assert read.place.endswith("a.yaml:6:7")


def test_tables_name_the_keys_that_their_rows_make_stale() -> None:
    """Segments of a key come from columns, in the order of the key."""
    ruleset, _ = compiler.from_files(SHIPPED, CLUSTERS)
    plans = plans_in(ruleset)
    names = [space.name for space in ruleset.keyspaces]
    found = {names[row.keyspace]: row.columns for row in plans.by_table["events"]}
    assert found["event"] == ("id",)
    assert found["org"] == ("organization_id",)
    by_seat = plans.by_table["seat_booking_state"]
    assert Dependency(names.index("event"), ("event_id",)) in by_seat
    (patched,) = (row for row in by_seat if row.patch is not None)
    assert names[patched.keyspace] == "event_availability"
    assert patched.patch is not None
    assert patched.patch.present.columns == ("event_id", "seat_id")
    assert patched.patch.counts == (b"", b"_count")
    assert (CLUSTERS.index("locks"), "cart") in plans.lost


def test_a_patch_asks_for_many_rows_at_once(tmp_path: Path) -> None:
    """Each parameter becomes an array of text, cast to the type of its segment within."""
    (tmp_path / "a.yaml").write_text(
        "keyspaces:\n"
        "  a:\n"
        "    key: a:{id:int}\n"
        "    type: hash\n"
        "    origin: {read: SELECT 1}\n"
        "    invalidate:\n"
        "      - table: t\n"
        "        key: {id: number}\n"
        "        patch:\n"
        "          columns: [n]\n"
        "          sql: SELECT x AS field, y AS value FROM t WHERE n = :n AND number = :id;\n"
    )
    policies = compiler.read(tmp_path, CLUSTERS)
    ruleset, _ = compiler.from_files(tmp_path, CLUSTERS)
    ((row,),) = plans_in(ruleset).by_table.values()
    assert row.patch is not None
    assert row.patch.present.columns == ("n", "number")
    assert row.patch.counts is None
    assert row.patch.present.statement.text == (
        "SELECT sidecache_row.n, sidecache_now.field, sidecache_now.value\n"
        "  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS sidecache_row(p0, p1, n)\n"
        " CROSS JOIN LATERAL (SELECT * FROM (\n"
        "SELECT x AS field, y AS value FROM t WHERE n = sidecache_row.p0::text "
        "AND number = sidecache_row.p1::bigint\n"
        ") AS rows LIMIT 17) AS sidecache_now ORDER BY 1"
    )
    assert row.patch.present.statement.place.endswith("a.yaml:11:11")
    (watch,) = watches_of(policies)
    assert [column for column, _ in watch.columns] == ["n", "number"]


def test_channels_that_tell_of_a_table() -> None:
    """All channels of a table, with their cluster; what they need is noted by its triggers."""
    policies = compiler.read(SHIPPED, CLUSTERS)
    ruleset, _ = compiler.from_files(SHIPPED, CLUSTERS)
    news = plans_in(ruleset).news
    seats = {told.channel: told for told in news["seat_booking_state"]}
    assert list(seats) == ["seat_updates", "all_seat_updates"]
    assert seats["seat_updates"].columns == ("event_id",)
    assert seats["all_seat_updates"].columns == ()
    assert seats["all_seat_updates"].present.columns == ("event_id", "seat_id")
    assert {told.cluster for rules in news.values() for told in rules} == {CLUSTERS.index("cache")}
    noted = {watch.table: [column for column, _ in watch.columns] for watch in watches_of(policies)}
    assert noted["bookings"] == ["booking_id"]
    assert sorted(noted["seat_booking_state"]) == ["event_id", "locked_by", "seat_id"]


def test_text_around_parameters_stays() -> None:
    """Quotes, casts and comments are passed over."""
    text = "SELECT ':a', x::text, $$:b$$ /* :c */ FROM t WHERE k = :k -- :d"
    assert sql.replaced(text, lambda name: f"<{name}>") == text.replace(":k ", "<k> ")


def test_watched_tables_have_the_columns_of_all_who_name_them(tmp_path: Path) -> None:
    """Each table once, with every column that any keyspace needs and where it is named."""
    (tmp_path / "a.yaml").write_text(
        "keyspaces:\n"
        "  a:\n"
        "    key: a:{x}\n"
        "    invalidate:\n"
        "      - {table: t, key: {x: id}, also: {b: {y: other}}}\n"
        "  b:\n"
        "    key: b:{y}\n"
        "    invalidate:\n"
        "      - {table: t, key: {y: id}}\n"
        "      - {table: s.u, key: {y: n}}\n"
    )
    first, second = watches_of(compiler.read(tmp_path, CLUSTERS))
    at = f"{tmp_path}/a.yaml:"
    assert first == ("s.u", (("n", at + "10:28"),), at + "10:10")
    assert second == ("t", (("id", at + "5:26"), ("other", at + "5:45")), at + "5:10")
