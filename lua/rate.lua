-- Reserve cells of a rate limit that several sidecars share.
-- KEYS  1 what is known of one id (its own hash tag)
-- ARGV  1 cells wanted   2 limit: cells per period   3 period in microseconds
--       4 tolerance in microseconds: how far cells may run ahead of the even pace (gcra),
--         or -1: exact in every window of the period, for limits up to 1000
-- Reply {cells granted, microseconds until there is room for one more}
local key, wanted, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local period, tolerance = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function text(number)
  -- Lua writes 14 digits by itself, and microseconds since 1970 have 16.
  return string.format('%.2f', number)
end

if tolerance >= 0 then
  local interval = period / limit
  local known = tonumber(redis.call('GET', key) or now)
  -- A node that was promoted may have a clock that is behind: what lies further ahead than this
  -- was never granted. It is written down, or it would be as far ahead the next time.
  local due = math.min(math.max(known, now), now + tolerance + interval)
  -- A thousandth of a cell is for what rounding has taken.
  local room = math.floor((now - due + tolerance) / interval + 0.001) + 1
  local granted = math.max(0, math.min(wanted, room))
  local behind = known > due
  due = due + granted * interval
  if granted > 0 or behind then
    redis.call('SET', key, text(due), 'PX', math.ceil((due - now) / 1000) + 1)
  end
  return {granted, math.max(0, math.ceil(due - tolerance - now))}
end

local newest = tonumber(redis.call('LINDEX', key, -1) or now)
if newest > now then
  -- The same with a window: its times move back with the clock.
  local times = redis.call('LRANGE', key, 0, -1)
  redis.call('DEL', key)
  for _, at in ipairs(times) do
    redis.call('RPUSH', key, text(at - (newest - now)))
  end
end

local function free()
  -- When the acceptance that has to be a period old will be: as many back as the limit.
  local oldest = redis.call('LINDEX', key, -limit)
  return oldest and tonumber(oldest) + period or now
end

local granted = 0
while granted < wanted and free() <= now do
  redis.call('RPUSH', key, text(now))
  granted = granted + 1
end
if granted > 0 then
  redis.call('LTRIM', key, -limit, -1)
  redis.call('PEXPIRE', key, math.ceil(period / 1000))
end
return {granted, math.max(0, math.ceil(free() - now))}
