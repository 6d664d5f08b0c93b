-- Say up to where a shard's keys are invalidated, unless somebody else has said something.
-- KEYS  1 the position   2 the mark of the shard's data, which lives as long as the data
-- ARGV  1 the position that is expected there, empty for none
--       2 the new position, empty to look only
--       3 the mark that is set with it where there is none; empty: none is set
-- Reply {position, mark}, each as it was found, empty where there was none. Who finds what it
-- expects has written. Both are read each time, so that neither is what an eviction takes.
local position = redis.call('GET', KEYS[1]) or ''
local mark = redis.call('GET', KEYS[2]) or ''
if position == ARGV[1] and ARGV[2] ~= '' then
  redis.call('SET', KEYS[1], ARGV[2])
  if mark == '' and ARGV[3] ~= '' then
    redis.call('SET', KEYS[2], ARGV[3])
  end
end
return {position, mark}
