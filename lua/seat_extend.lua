-- Keep a seat longer; where Redis decides.
-- KEYS  1 the seat's lock   2 what its owner holds in the event
-- ARGV  1 event   2 seat   3 owner   4 seconds
-- Reply outcome, extended held booked or lost, and with it token and expires_in_ms
local LONGEST = 900 -- seconds
local known = redis.call('GET', KEYS[1])
if not known then
  return {'outcome', 'lost'}
end
-- What is no lock of ours is somebody's who is not known.
local read, lock = pcall(cjson.decode, known)
lock = read and type(lock) == 'table' and lock or {}
if lock.booked then
  return {'outcome', 'booked'}
end
if lock.user_id ~= ARGV[3] or not lock.token then
  return {'outcome', 'held', 'expires_in_ms', redis.call('PTTL', KEYS[1])}
end
local seconds = tonumber(ARGV[4])
if not seconds or seconds ~= math.floor(seconds) or seconds < 1 or seconds == math.huge then
  return redis.error_reply('ERR value is not an integer or out of range')
end
-- Before anything is written: whose key is of another type gets Redis' error, and nothing else.
redis.call('ZCARD', KEYS[2])
local time = redis.call('TIME')
local hold = math.min(seconds, LONGEST) * 1000
lock.expires_at = tonumber(time[1]) + hold / 1000
redis.call('SET', KEYS[1], cjson.encode(lock), 'PX', hold)
redis.call('ZADD', KEYS[2], time[1] * 1000 + hold, ARGV[2] .. ':' .. lock.token)
redis.call('PEXPIRE', KEYS[2], LONGEST * 1000)
return {'outcome', 'extended', 'token', tonumber(lock.token), 'expires_in_ms', hold}
