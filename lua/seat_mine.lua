-- Tell which seats an owner holds in an event; where Redis decides.
-- KEYS  1 what the owner holds in the event
-- ARGV  1 event   2 owner
-- Reply of each seat its name, its token and the milliseconds left
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then
  return {}
end
local held = {}
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES')
for at = 1, #found, 2 do
  local seat, token = found[at]:match('^(.*):(%d+)$')
  held[#held + 1] = {seat, tonumber(token), tonumber(found[at + 1]) - now}
end
return held
