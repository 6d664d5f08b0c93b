-- Carry commands out upon a key that is there, and end every fetch of it; nothing where it is not:
-- a part that is written to nothing would be taken for all there is.
-- KEYS  1 the lease   2 the key   3 the marker that there is no row      (one slot)
-- ARGV  of each command: how many words it has, and these
-- Reply that of the first command, a large sum as text, or an error that begins with ABSENT
if redis.call('EXISTS', KEYS[2]) == 0 then
  return redis.error_reply('ABSENT there is no such key')
end
-- The client's own comes first: a script that has written is not asked for memory any more.
local first = redis.pcall(unpack(ARGV, 2, 1 + ARGV[1]))
-- Lua's numbers are exact up to here; a sum beyond is told as the text that it is.
if type(first) == 'number' and math.abs(first) >= 9007199254740992 then
  if string.lower(ARGV[2]) == 'hincrby' then
    first = redis.call('HGET', KEYS[2], ARGV[4])
  else
    first = redis.call('GET', KEYS[2])
  end
end
local at = 2 + ARGV[1]
while at <= #ARGV do
  redis.pcall(unpack(ARGV, at + 1, at + ARGV[at]))
  at = at + 1 + ARGV[at]
end
redis.call('UNLINK', KEYS[1], KEYS[3])
return first
