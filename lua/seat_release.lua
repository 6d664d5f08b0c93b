-- Give a seat up; where Redis decides.
-- KEYS  1 the seat's lock   2 what its owner holds in the event   3 the event's availability
-- ARGV  1 event   2 seat   3 owner   4 token
-- Reply outcome, released or lost
if #ARGV > 4 then
  return redis.error_reply('ERR Redis alone gives up one seat at a time')
end
if not ARGV[4]:match('^-?%d+$') then
  return redis.error_reply('ERR value is not an integer or out of range')
end
local known = redis.call('GET', KEYS[1])
-- What is no lock of ours is somebody's who is not known.
local read, lock = pcall(cjson.decode, known or 'null')
lock = known and (read and type(lock) == 'table' and lock or {}) or nil
if not lock or lock.user_id ~= ARGV[3] then
  -- It may have ended by a bare DEL, of which the list has not heard.
  redis.call('HDEL', KEYS[2], ARGV[2])
end
if not lock or lock.booked == true or lock.user_id ~= ARGV[3] or lock.token ~= ARGV[4] then
  return {'outcome', 'lost'}
end
-- Before anything is written: whose key is of another type gets Redis' error, and nothing else.
local shown = redis.call('HGET', KEYS[3], ARGV[2])
redis.call('HLEN', KEYS[2])
redis.call('DEL', KEYS[1])
redis.call('HDEL', KEYS[2], ARGV[2])
if shown == 'locked' then
  redis.call('HSET', KEYS[3], ARGV[2], 'available', 'last_updated', redis.call('TIME')[1])
  redis.call('HINCRBY', KEYS[3], 'available_count', 1)
  redis.call('HINCRBY', KEYS[3], 'locked_count', -1)
end
return {'outcome', 'released'}
