-- Join the queue of a seat, keep the place in it, or leave it; where Redis decides.
-- KEYS  1 the seat's lock   2 its queue
-- ARGV  1 event   2 seat   3 owner   4 leave, or nothing
-- Reply outcome, waiting offered available holder booked left or full, and with the first two
--       position, wait_ms and offered_ms
local HEARTBEAT, OFFER, MOST = 20000, 10000, 1000 -- milliseconds, waiters
local function entry_of(text)
  -- What some client has put there is nobody's place.
  local read, entry = pcall(cjson.decode, text)
  local ours = read and type(entry) == 'table' and type(entry.joined) == 'string'
    and type(entry.ends) == 'number' and entry.ends < 2 ^ 53
    and type(entry.offered) == 'number' and entry.offered >= 0 and entry.offered < 2 ^ 53
  return ours and entry or nil
end
local leaving = ARGV[4] and ARGV[4]:lower() == 'leave'
if #ARGV > 4 or (ARGV[4] and not leaving) then
  return redis.error_reply('ERR syntax error')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('GET', KEYS[1])
-- What is no lock of ours is somebody's who is not known.
local read, lock = pcall(cjson.decode, known or 'null')
lock = known and (read and type(lock) == 'table' and lock or {}) or nil
if leaving then
  redis.call('HDEL', KEYS[2], ARGV[3])
  return {'outcome', 'left'}
end
if lock and lock.booked == true then
  return {'outcome', 'booked'}
end
if lock and lock.user_id == ARGV[3] then
  return {'outcome', 'holder'}
end
-- One field per owner: when it joined, until when it waits, until when the seat is kept for it. Who
-- was silent for too long, or let an offer pass, is dropped; nobody's times depend on another's.
local waiting, count = {}, 0
local fields = redis.call('HGETALL', KEYS[2])
for at = 1, #fields, 2 do
  local entry = entry_of(fields[at + 1])
  if not entry or entry.ends <= now or (entry.offered > 0 and entry.offered <= now) then
    redis.call('HDEL', KEYS[2], fields[at])
  else
    waiting[fields[at]], count = entry, count + 1
  end
end
local own = waiting[ARGV[3]]
if not own and not lock and count == 0 then
  -- Anybody may take it.
  return {'outcome', 'available'}
end
if not own and count >= MOST then
  return {'outcome', 'full'}
end
-- As text of one length, because JSON here has 14 digits of a number: two would have joined at once.
own = own or {joined = time[1] .. string.format('%06d', time[2]) .. ARGV[3], offered = 0}
own.ends = now + HEARTBEAT
local ahead, kept = 0, false
for owner, entry in pairs(waiting) do
  if owner ~= ARGV[3] then
    ahead = ahead + (entry.joined < own.joined and 1 or 0)
    kept = kept or entry.offered > 0
  end
end
if not lock and not kept and ahead == 0 and own.offered == 0 then
  own.offered = now + OFFER
end
redis.call('HSET', KEYS[2], ARGV[3], cjson.encode(own))
redis.call('PEXPIRE', KEYS[2], HEARTBEAT)
local left = lock and math.max(0, redis.call('PTTL', KEYS[1])) or 0
return {
  'outcome', own.offered > 0 and 'offered' or 'waiting', 'position', ahead + 1,
  'wait_ms', left + ahead * OFFER, 'offered_ms', own.offered > 0 and own.offered - now or 0,
}
