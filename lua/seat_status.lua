-- Tell who holds a seat; where Redis decides.
-- KEYS  1 the seat's lock
-- ARGV  1 event   2 seat
-- Reply outcome, available booked or locked, and with it owner, token and expires_in_ms
local known = redis.call('GET', KEYS[1])
if not known then
  return {'outcome', 'available'}
end
local lock = cjson.decode(known)
if lock.booked then
  return {'outcome', 'booked'}
end
return {
  'outcome', 'locked', 'owner', lock.user_id, 'token', lock.token,
  'expires_in_ms', redis.call('PTTL', KEYS[1]),
}
