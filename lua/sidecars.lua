-- Say that a sidecar is there, and count those that have said so lately.
-- KEYS  1 the sorted set of all sidecars, by when each was heard of last
-- ARGV  1 this sidecar   2 seconds after which one that is silent is gone
-- Reply how many there are
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
