-- Say what a key holds, to compare it with what PostgreSQL says.
-- KEYS  1 the key   2 the lease of whoever fetches it, where there may be one      (one slot)
-- Reply {type, milliseconds to live as PTTL says them, all of it as GET, HGETALL, LRANGE, SMEMBERS
-- and ZRANGE WITHSCORES give it}; {'none'} where there is no key, {'busy'} while it is fetched,
-- {type} for one that cannot be compared
if KEYS[2] and redis.call('EXISTS', KEYS[2]) == 1 then
  return {'busy'}
end
local kind = redis.call('TYPE', KEYS[1]).ok
local reads = {
  string = {'GET'}, hash = {'HGETALL'}, list = {'LRANGE', 0, -1}, set = {'SMEMBERS'},
  zset = {'ZRANGE', 0, -1, 'WITHSCORES'}
}
local read = reads[kind]
if not read then
  return {kind}
end
local whole = redis.call(read[1], KEYS[1], unpack(read, 2))
if kind == 'string' then
  whole = {whole}
end
return {kind, tostring(redis.call('PTTL', KEYS[1])), whole}
