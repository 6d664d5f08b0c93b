-- Join the queue of a seat, keep the place in it, or leave it; where Redis decides.
-- KEYS  1 the seat's lock   2 its queue
-- ARGV  1 event   2 seat   3 owner   4 leave, or nothing
-- Reply outcome, waiting offered holder left or full, and with it position, wait_ms and offered_ms
local HEARTBEAT, OFFER, MOST = 20000, 10000, 1000 -- milliseconds, waiters
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('GET', KEYS[1])
local lock = known and cjson.decode(known)
if ARGV[4] == 'leave' then
  redis.call('HDEL', KEYS[2], ARGV[3])
  return {'outcome', 'left'}
end
if lock and lock.user_id == ARGV[3] then
  return {'outcome', 'holder'}
end
-- One field per owner: when it joined, when it is given up, until when the seat is kept for it.
-- Absolute times: nobody's depend on those of others.
local waiting, count = {}, 0
local fields = redis.call('HGETALL', KEYS[2])
for at = 1, #fields, 2 do
  local entry = cjson.decode(fields[at + 1])
  if entry.ends <= now or (entry.offered > 0 and entry.offered <= now) then
    redis.call('HDEL', KEYS[2], fields[at])
  else
    waiting[fields[at]], count = entry, count + 1
  end
end
local own = waiting[ARGV[3]]
if not own and count >= MOST then
  return {'outcome', 'full'}
end
own = own or {joined = now * 1000 + time[2] % 1000, offered = 0}
own.ends = now + HEARTBEAT
local ahead = 0
for owner, entry in pairs(waiting) do
  if owner ~= ARGV[3] and entry.joined < own.joined then
    ahead = ahead + 1
  end
end
if not lock and ahead == 0 and own.offered == 0 then
  own.offered = now + OFFER
end
redis.call('HSET', KEYS[2], ARGV[3], cjson.encode(own))
redis.call('PEXPIRE', KEYS[2], HEARTBEAT)
local left = lock and math.max(0, redis.call('PTTL', KEYS[1])) or 0
return {
  'outcome', own.offered > 0 and 'offered' or 'waiting', 'position', ahead + 1,
  'wait_ms', left + ahead * OFFER, 'offered_ms', own.offered > 0 and own.offered - now or 0,
}
