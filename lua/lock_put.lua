-- Show a grant that PostgreSQL has made, unless a later one is known here.
-- KEYS  1 the lock   2 its token      (one slot)
-- ARGV  1 the fencing token   2 the value   3 milliseconds left
-- Reply 1, or 0 where this comes too late
-- The token stays for a while when the lock goes: a put that was on its way for longer than the
-- release that followed it finds its own token, and no lock.
local function later(one, other)
  -- As numbers of Lua they would be alike beyond 2^53.
  return #one > #other or (#one == #other and one > other)
end

local known = redis.call('GET', KEYS[2]) or '0'
local token, left = ARGV[1], tonumber(ARGV[3])
if left <= 0 or later(known, token) then
  return 0
end
if known == token and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', left)
redis.call('SET', KEYS[2], token, 'PX', left + 60000)
return 1
