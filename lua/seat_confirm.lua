-- Make a lock a sale; where Redis decides. What is sold stays sold: the key keeps no time, for which
-- its keyspace says ttl: {missing: allow}. Otherwise it is on sale again after the default time.
-- KEYS  1 the seat's lock   2 what its owner holds in the event   3 the event's availability
-- ARGV  1 event   2 seat   3 owner   4 token   5 booking
-- Reply outcome, confirmed or lost
if #ARGV > 5 then
  return redis.error_reply('ERR Redis alone sells one seat at a time')
end
if ARGV[5] == '' then
  -- What is sold to nobody's booking could not be told from what is sold to another's.
  return redis.error_reply('ERR an owner, a lock and a booking are text, not empty, and an owner not too long')
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
if not lock or lock.user_id ~= ARGV[3] or lock.token ~= ARGV[4] then
  return {'outcome', 'lost'}
end
if lock.booked == true then
  return {'outcome', lock.booking_id == ARGV[5] and 'confirmed' or 'lost'}
end
lock.booking_id, lock.booked, lock.expires_at = ARGV[5], true, nil
-- Before anything is written: whose key is of another type gets Redis' error, and nothing else.
local shown = redis.call('HGET', KEYS[3], ARGV[2])
redis.call('HLEN', KEYS[2])
redis.call('SET', KEYS[1], cjson.encode(lock))
redis.call('HDEL', KEYS[2], ARGV[2])
if shown == 'locked' then
  redis.call('HSET', KEYS[3], ARGV[2], 'booked', 'last_updated', redis.call('TIME')[1])
  redis.call('HINCRBY', KEYS[3], 'locked_count', -1)
  redis.call('HINCRBY', KEYS[3], 'booked_count', 1)
end
return {'outcome', 'confirmed'}
