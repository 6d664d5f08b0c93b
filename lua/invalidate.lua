-- Make a key that PostgreSQL has changed one that nobody has, and every fill under way void.
-- KEYS  1.. what goes, of one slot: the lease, the key itself, the marker that there is no row.
--       The lease comes first: given one by one, while a slot moves, it is gone before the key is,
--       and a fill that began before the change finds no lease of its own any more.
-- Reply how many of them there were
return redis.call('UNLINK', unpack(KEYS))
