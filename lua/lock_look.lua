-- Look who holds a lock, as far as Redis knows: what the gate asks before PostgreSQL is asked.
-- KEYS  1 the lock
-- Reply {value, milliseconds left}, empty and 0 where nobody is known to hold it
local value = redis.call('GET', KEYS[1])
if not value then
  return {'', 0}
end
return {value, redis.call('PTTL', KEYS[1])}
