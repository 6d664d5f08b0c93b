-- Put back what PostgreSQL has of a key that its shard has lost, unless the key is there again.
-- KEYS  1 the key   2 the marker that there is no row, where there may be one      (one slot)
-- ARGV  1 the latest moment to do so, in milliseconds since the epoch by this node's clock: who
--         comes later could write behind a change that was made known meanwhile
--       2 string, hash, list, set or zset
--       3 when the key ends, in the same milliseconds (0: it lives for ever)
--       4.. the members as SET, HSET, RPUSH, SADD and ZADD take them
-- Reply 1; 0 where the key is there or ends within a second; -1 where it is too late
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[1]) then
  return -1
end
local ending = tonumber(ARGV[3])
if (ending > 0 and ending - now < 1000) or redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local writes = {string = 'SET', hash = 'HSET', list = 'RPUSH', set = 'SADD', zset = 'ZADD'}
-- Lua's stack has room for some 8,000 words of one call; an even number keeps pairs together.
for first = 4, #ARGV, 1000 do
  redis.call(writes[ARGV[2]], KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if ending > 0 then
  redis.call('PEXPIREAT', KEYS[1], ARGV[3])
end
if KEYS[2] then
  redis.call('UNLINK', KEYS[2])
end
return 1
