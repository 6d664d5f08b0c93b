-- Put what was fetched in the place of a key, if the lease is still that of whoever fetched it: an
-- invalidation takes the lease away, and what was read before it must not come back behind it.
-- KEYS  1 the lease   2 the key   3 the marker that there is no row      (one slot)
-- ARGV  1 the token of the lease
--       2 string, hash, list, set or zset; none: there is no row; kept: only the lease goes
--       3 milliseconds to live (0: for ever); of none, those of the marker (0: there is none)
--       4.. the members as SET, HSET, RPUSH, SADD and ZADD take them
-- Reply 1, or 0 where the lease was lost and nothing is changed
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
-- From here on no node says that it is full. One that is full gives no lease, so this is for what
-- was under way when it became so.
redis.call('DEL', KEYS[1])
local kind, life = ARGV[2], tonumber(ARGV[3])
if kind == 'kept' then
  return 1
end
redis.call('UNLINK', KEYS[2], KEYS[3])
if kind == 'none' then
  if life > 0 then
    redis.call('SET', KEYS[3], '', 'PX', life)
  end
  return 1
end
local writes = {string = 'SET', hash = 'HSET', list = 'RPUSH', set = 'SADD', zset = 'ZADD'}
-- Lua's stack has room for some 8,000 words of one call; an even number keeps pairs together.
for first = 4, #ARGV, 1000 do
  redis.call(writes[kind], KEYS[2], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if life > 0 then
  redis.call('PEXPIRE', KEYS[2], life)
end
return 1
