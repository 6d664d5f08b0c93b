-- Tell which seats an owner holds in an event; where Redis decides.
-- KEYS  1 what the owner holds in the event
-- ARGV  1 event   2 owner
-- Reply the names of the seats
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then
  return {}
end
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
