-- Take the right to fetch a key for all sidecars, unless there is no need to.
-- KEYS  1 the lease   2 the key   3 the marker that there is no row      (one slot)
-- ARGV  1 a token of whoever asks   2 milliseconds that the lease lasts
--       3 milliseconds: a key that has no more than that left to live counts as gone
-- Reply there (the key is), none (there is no row), won, or held (by somebody else)
local left = redis.call('PTTL', KEYS[2])
if left == -1 or left > tonumber(ARGV[3]) then
  return 'there'
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return 'none'
end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return 'won'
end
return 'held'
