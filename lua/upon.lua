-- Carry commands out upon keys that are there, and end every fetch of them; nothing where one is not:
-- a part that is written to nothing would be taken for all there is.
-- KEYS  first those that must be there, then leases and markers that there is no row  (one slot)
-- ARGV  1 RESP version of the reply   2 how many keys must be there
--       3.. of each of these, milliseconds: one with no more than that left to live counts as gone
--       then of each command: how many words it has, and these
-- Reply that of the first command, a large sum as text, or an error that begins with ABSENT
local needed = tonumber(ARGV[2])
for number = 1, needed do
  local left = redis.call('PTTL', KEYS[number])
  if left ~= -1 and left <= tonumber(ARGV[2 + number]) then
    return redis.error_reply('ABSENT there is no such key')
  end
end
local at = 3 + needed
-- The client's own comes first: a script that has written is not asked for memory any more.
redis.setresp(tonumber(ARGV[1]))
local first = redis.pcall(unpack(ARGV, at + 1, at + ARGV[at]))
-- Lua's numbers are exact up to here; a sum beyond is told as the text that it is.
if type(first) == 'number' and math.abs(first) >= 9007199254740992 then
  if string.lower(ARGV[at + 1]) == 'hincrby' then
    first = redis.call('HGET', KEYS[1], ARGV[at + 3])
  else
    first = redis.call('GET', KEYS[1])
  end
end
at = at + 1 + ARGV[at]
while at <= #ARGV do
  redis.pcall(unpack(ARGV, at + 1, at + ARGV[at]))
  at = at + 1 + ARGV[at]
end
if #KEYS > needed then
  redis.call('UNLINK', unpack(KEYS, needed + 1))
end
return first
