-- Tell who holds a seat; where Redis decides.
-- KEYS  1 the seat's lock
-- ARGV  1 event   2 seat
-- Reply outcome, available booked or locked, and with it owner (where one is known), token and
--       expires_in_ms
local function token_of(lock)
  -- Of larger numbers Lua does not know all digits.
  local text = tostring(lock.token):match('^[1-9]%d*$')
  return text and tonumber(text) < 2 ^ 53 and text or nil
end
local known = redis.call('GET', KEYS[1])
if not known then
  return {'outcome', 'available'}
end
-- What is no lock of ours is somebody's who is not known.
local read, lock = pcall(cjson.decode, known)
lock = read and type(lock) == 'table' and lock or {}
if lock.booked == true then
  return {'outcome', 'booked'}
end
local reply = {
  'outcome', 'locked', 'token', tonumber(token_of(lock) or 0),
  'expires_in_ms', redis.call('PTTL', KEYS[1]),
}
if type(lock.user_id) == 'string' or type(lock.user_id) == 'number' then
  table.insert(reply, 3, 'owner')
  table.insert(reply, 4, tostring(lock.user_id))
end
return reply
