-- Take a seat for an owner, or keep it longer; where Redis decides (authority: redis). Where
-- PostgreSQL does, the proxy takes the same path in the database and none of this runs.
-- KEYS  1 the seat's lock   2 what its owner holds in the event   3 the event's availability
--       4 the seat's queue
-- ARGV  1 event   2 seat   3 owner   4 booking   5 session
-- Reply outcome, acquired extended held queue booked or limit, and with it token, expires_in_ms or
--       held
-- Nobody sweeps here: a seat whose lock has run out is shown as locked until somebody asks for it.
-- Of the list a field is a seat: in milliseconds since the epoch when its lock ends, and the token.
local HOLD, LONGEST, OFFER, MOST = 600000, 900000, 10000, 10 -- milliseconds, seats
local WHOLE = 1200000 -- milliseconds from the grant, however often it is taken again
local function entry_of(text)
  -- What some client has put there is nobody's place.
  local read, entry = pcall(cjson.decode, text)
  local ours = read and type(entry) == 'table' and type(entry.joined) == 'string'
    and type(entry.ends) == 'number' and entry.ends < 2 ^ 53
    and type(entry.offered) == 'number' and entry.offered >= 0 and entry.offered < 2 ^ 53
  return ours and entry or nil
end
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
if #ARGV > 5 then
  return redis.error_reply('ERR Redis alone takes one seat at a time')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('GET', KEYS[1])
-- What is no lock of ours is somebody's who is not known.
local read, lock = pcall(cjson.decode, known or 'null')
lock = known and (read and type(lock) == 'table' and lock or {}) or nil
if not lock or lock.user_id ~= ARGV[3] then
  -- It may have ended by a bare DEL, of which the list has not heard.
  redis.call('HDEL', KEYS[2], ARGV[2])
end
if lock and lock.booked == true then
  return {'outcome', 'booked'}
end
if lock and lock.user_id ~= ARGV[3] then
  return {'outcome', 'held', 'expires_in_ms', redis.call('PTTL', KEYS[1])}
end
if not lock then
  -- A free seat is kept for who waits for longest.
  local first, entry
  local fields = redis.call('HGETALL', KEYS[4])
  for at = 1, #fields, 2 do
    local each = entry_of(fields[at + 1])
    if each and each.ends > now and (each.offered == 0 or each.offered > now)
        and (not entry or each.joined < entry.joined) then
      first, entry = fields[at], each
    end
  end
  if first and first ~= ARGV[3] then
    if entry.offered == 0 then
      entry.offered = now + OFFER
      redis.call('HSET', KEYS[4], first, cjson.encode(entry))
    end
    return {'outcome', 'queue', 'expires_in_ms', entry.offered - now}
  end
end
-- Before anything is granted: whose key is of another type gets Redis' error, and nothing else.
local shown = redis.call('HGET', KEYS[3], ARGV[2])
-- Of what is held by time, not by a list that nobody is taken off.
local held, listed = 0, redis.call('HGETALL', KEYS[2])
for at = 1, #listed, 2 do
  if (tonumber(listed[at + 1]:match('^%d+')) or 0) > now then
    held = held + 1
  else
    redis.call('HDEL', KEYS[2], listed[at])
  end
end
if not lock and held >= MOST then
  return {'outcome', 'limit', 'held', held}
end
-- The slot's clock in microseconds: greater with every grant as long as no clock goes back, which
-- is all that Redis alone can promise. As text, because JSON here has 14 digits of a number.
local token = lock and token_of(lock) or time[1] .. string.format('%06d', time[2])
local since = since_of(lock or {}, now)
-- Who has extended it does not hold it shorter by this.
local hold = lock and math.max(HOLD, redis.call('PTTL', KEYS[1])) or HOLD
hold = math.max(1, math.floor(math.min(hold, since * 1000 + WHOLE - now)))
-- What is not said stays as it was.
local booking = ARGV[4] ~= '' and ARGV[4] or lock and lock.booking_id
local session = ARGV[5] ~= '' and ARGV[5] or lock and lock.session_id
redis.call('SET', KEYS[1], cjson.encode({
  user_id = ARGV[3], booking_id = booking or nil, session_id = session or nil, token = token,
  locked_at = since, expires_at = math.floor((now + hold) / 1000),
}), 'PX', hold)
redis.call('HSET', KEYS[2], ARGV[2], now + hold .. ' ' .. token)
redis.call('PEXPIRE', KEYS[2], LONGEST)
redis.call('HDEL', KEYS[4], ARGV[3])
-- Only what is there is kept in step: a part of an availability would be taken for all of it.
if shown == 'available' then
  redis.call('HSET', KEYS[3], ARGV[2], 'locked', 'last_updated', time[1])
  redis.call('HINCRBY', KEYS[3], 'available_count', -1)
  redis.call('HINCRBY', KEYS[3], 'locked_count', 1)
end
return {
  'outcome', lock and 'extended' or 'acquired', 'token', tonumber(token), 'expires_in_ms', hold,
}
