-- Keep a seat longer; where Redis decides.
-- KEYS  1 the seat's lock   2 what its owner holds in the event
-- ARGV  1 event   2 seat   3 owner   4 seconds
-- Reply outcome, extended held or lost, and with it token and expires_in_ms
local LONGEST = 900 -- seconds
local known = redis.call('GET', KEYS[1])
if not known then
  return {'outcome', 'lost'}
end
local lock = cjson.decode(known)
if lock.user_id ~= ARGV[3] then
  return {'outcome', 'held', 'expires_in_ms', redis.call('PTTL', KEYS[1])}
end
local time = redis.call('TIME')
local hold = math.min(tonumber(ARGV[4]) or LONGEST, LONGEST) * 1000
lock.expires_at = tonumber(time[1]) + hold / 1000
redis.call('SET', KEYS[1], cjson.encode(lock), 'PX', hold)
redis.call('ZADD', KEYS[2], time[1] * 1000 + hold, ARGV[2])
redis.call('PEXPIRE', KEYS[2], LONGEST * 1000)
return {'outcome', 'extended', 'token', lock.token, 'expires_in_ms', hold}
