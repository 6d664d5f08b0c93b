-- Put so many more of an item into a cart; none is put in where the cart is full.
-- KEYS  1 cart
-- ARGV  1 user   2 item   3 quantity, a whole number from 1 on
-- Reply {'outcome', added or full, 'quantity', of the item, 'items', in the cart}
local cart, item, quantity = KEYS[1], ARGV[2], tonumber(ARGV[3])
local most = 50

if not quantity or quantity < 1 or quantity % 1 ~= 0 then
  return redis.error_reply('ERR quantity is a whole number from 1 on')
end

local known = redis.call('HEXISTS', cart, item)
if known == 0 and redis.call('HLEN', cart) >= most then
  return {'outcome', 'full', 'quantity', 0, 'items', most}
end
quantity = redis.call('HINCRBY', cart, item, quantity)
return {'outcome', 'added', 'quantity', quantity, 'items', redis.call('HLEN', cart)}
