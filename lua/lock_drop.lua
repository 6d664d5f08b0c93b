-- Take a lock away that PostgreSQL has released, unless a later grant of it is known here.
-- KEYS  1 the lock   2 its token      (one slot)
-- ARGV  1 the fencing token that was released, and every earlier one with it
-- Reply 1, or 0 where a later grant is known
local function later(one, other)
  -- As numbers of Lua they would be alike beyond 2^53.
  return #one > #other or (#one == #other and one > other)
end

if later(redis.call('GET', KEYS[2]) or '0', ARGV[1]) then
  return 0
end
redis.call('UNLINK', KEYS[1])
-- So that a put of this grant that is still on its way comes too late.
redis.call('SET', KEYS[2], ARGV[1], 'PX', 60000)
return 1
