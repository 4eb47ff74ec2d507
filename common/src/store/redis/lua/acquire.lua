-- KEYS: the lease, the token counter. ARGV: holder, TTL. First reply: 0 acquired, 1 held by another.
local time = now()
local found = redis.call('HMGET', b, 'holder', 'epoch', 'ends')
local epoch
if found[1] and lasts(tonumber(found[3]), time) then
    if found[1] ~= ARGV[2] then return {1, found[1], found[3]} end
    epoch = found[2]
else
    epoch = text(next_token(redis.call('GET', KEYS[2])))
    redis.call('SET', KEYS[2], epoch)
end
redis.call('HSET', b, 'holder', ARGV[2], 'epoch', epoch, 'ends', text(time + tonumber(ARGV[3])))
redis.call('PEXPIRE', b, tonumber(ARGV[3]) + 60000)
return {0, epoch, ''}
