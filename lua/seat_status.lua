-- Tell who holds a seat; where Redis decides.
-- KEYS  1 the seat's lock
-- ARGV  1 event   2 seat
-- Reply outcome, available booked or locked, and with it owner, token and expires_in_ms
local known = redis.call('GET', KEYS[1])
if not known then
  return {'outcome', 'available'}
end
-- What is no lock of ours is somebody's who is not known.
local read, lock = pcall(cjson.decode, known)
lock = read and type(lock) == 'table' and lock or {}
if lock.booked then
  return {'outcome', 'booked'}
end
return {
  'outcome', 'locked', 'owner', tostring(lock.user_id or ''), 'token', tonumber(lock.token) or 0,
  'expires_in_ms', redis.call('PTTL', KEYS[1]),
}
