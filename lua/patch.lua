-- Keep a hash in step with rows of PostgreSQL that have changed, and make every fill under way void.
-- Rows are known as of a moment. Who comes with older ones than the key has had, or with nothing to
-- compare them with, takes the key away instead, which is right at any time.
-- KEYS  1 as of when the key was last kept in step   2 the lease   3 the key   4 the marker that
--       there is no row (one slot; the first alone: only the moment is noted)
-- ARGV  1 which history of which database, without a blank   2 how many of its transactions the
--       rows show   3 milliseconds for which that is remembered
--       4, 5 what stands before and behind a value in the name of the field that counts it
--       6.. triples: field, value, and set, count or greatest (the greater of two numbers);
--       none at all: the key is taken away
-- Reply 1 patched, 0 not there, -1 taken away
local seen, history = (redis.call('GET', KEYS[1]) or ''):match('^(%d+) (.*)$')
local known = history == ARGV[1]
local late = known and tonumber(seen) > tonumber(ARGV[2])
if not late then
  local noted = redis.pcall('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1], 'PX', ARGV[3])
  if noted.err then
    -- A node that is full. What is known of no moment takes the key away, this time and the next.
    redis.call('UNLINK', KEYS[1])
    known = false
  end
end
if not KEYS[2] then
  return 0
end
redis.call('UNLINK', KEYS[2], KEYS[4])
local key = KEYS[3]
if redis.call('EXISTS', key) == 0 then
  return 0
end
local function away()
  redis.call('UNLINK', key)
  return -1
end
if late or not known or #ARGV < 6 then
  return away()
end
-- First all is worked out, then all is written: a script that fails half way is not taken back.
local now, changed, moves = {}, {}, {}
for at = 6, #ARGV, 3 do
  local field, value, how = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local old = now[field] or redis.call('HGET', key, field)
  if not old then
    return away()
  end
  if how == 'greatest' then
    local before, behind = tonumber(old), tonumber(value)
    if not before or not behind then
      return away()
    end
    if behind <= before then
      value = old
    end
  elseif how == 'count' and old ~= value then
    moves[old] = (moves[old] or 0) - 1
    moves[value] = (moves[value] or 0) + 1
  end
  now[field] = value
  if old ~= value then
    changed[field] = value
  end
end
for value, by in pairs(moves) do
  local counter = ARGV[4] .. value .. ARGV[5]
  local count = redis.call('HGET', key, counter)
  if not count or not count:match('^%d+$') then
    return away()
  end
  changed[counter] = string.format('%.0f', tonumber(count) + by)
end
for field, value in pairs(changed) do
  redis.call('HSET', key, field, value)
end
return 1
