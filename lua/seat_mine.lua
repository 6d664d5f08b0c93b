-- Tell which seats an owner holds in an event; where Redis decides.
-- KEYS  1 what the owner holds in the event
-- ARGV  1 event   2 owner
-- Reply of each seat its name, its token and the milliseconds left, in order of the names
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  return {}
end
local held = {}
local found = redis.call('HGETALL', KEYS[1])
for at = 1, #found, 2 do
  local ends, token = found[at + 1]:match('^(%d+) (%d+)$')
  if ends and tonumber(ends) > now and tonumber(ends) < 2 ^ 53 and tonumber(token) < 2 ^ 53 then
    held[#held + 1] = {found[at], tonumber(token), tonumber(ends) - now}
  end
end
table.sort(held, function(one, other) return one[1] < other[1] end)
return held
