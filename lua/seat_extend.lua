-- Keep a seat longer; where Redis decides.
-- KEYS  1 the seat's lock   2 what its owner holds in the event
-- ARGV  1 event   2 seat   3 owner   4 seconds
-- Reply outcome, extended held booked or lost, and with it token and expires_in_ms
local LONGEST, WHOLE = 900, 1200 -- seconds from now, and from the grant
local function token_of(lock)
  -- Of larger numbers Lua does not know all digits.
  local text = tostring(lock.token):match('^[1-9]%d*$')
  return text and tonumber(text) < 2 ^ 53 and text or nil
end
local function since_of(lock, now)
  -- Seconds. A time that no grant can have which lasts still is none.
  local at = tonumber(lock.locked_at)
  return at and at * 1000 > now - 3600000 and at * 1000 <= now and at or math.floor(now / 1000)
end
if #ARGV > 4 then
  return redis.error_reply('ERR Redis alone keeps one seat longer at a time')
end
if not ARGV[4]:match('^-?%d+$') then
  return redis.error_reply('ERR value is not an integer or out of range')
end
local seconds = tonumber(ARGV[4])
if seconds < 1 then
  return redis.error_reply("ERR invalid expire time in 'seat.extend' command")
end
local known = redis.call('GET', KEYS[1])
-- What is no lock of ours is somebody's who is not known.
local read, lock = pcall(cjson.decode, known or 'null')
lock = known and (read and type(lock) == 'table' and lock or {}) or nil
if not lock or lock.user_id ~= ARGV[3] then
  -- It may have ended by a bare DEL, of which the list has not heard.
  redis.call('HDEL', KEYS[2], ARGV[2])
end
if not lock then
  return {'outcome', 'lost'}
end
if lock.booked == true then
  return {'outcome', 'booked'}
end
if lock.user_id ~= ARGV[3] or not token_of(lock) then
  return {'outcome', 'held', 'expires_in_ms', redis.call('PTTL', KEYS[1])}
end
-- Before anything is written: whose key is of another type gets Redis' error, and nothing else.
redis.call('HLEN', KEYS[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local rest = (since_of(lock, now) + WHOLE) * 1000 - now
local hold = math.max(1, math.floor(math.min(seconds * 1000, LONGEST * 1000, rest)))
lock.locked_at = since_of(lock, now)
lock.expires_at = math.floor((now + hold) / 1000)
redis.call('SET', KEYS[1], cjson.encode(lock), 'PX', hold)
redis.call('HSET', KEYS[2], ARGV[2], now + hold .. ' ' .. lock.token)
redis.call('PEXPIRE', KEYS[2], LONGEST * 1000)
return {'outcome', 'extended', 'token', tonumber(lock.token), 'expires_in_ms', hold}
