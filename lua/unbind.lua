-- Take a key away whose connection has closed, unless somebody has written it since.
-- KEYS  1 the key
-- ARGV  1 SHA1 of the value that the connection wrote, in hexadecimal
-- Reply 1, or 0 where the key holds something else or is not there
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and redis.sha1hex(value) == ARGV[1] then
  return redis.call('UNLINK', KEYS[1])
end
return 0
