-- KEYS: the lease, the token counter. ARGV: holder, TTL. First reply: 0 acquired, 1 held by another.
local time = now()
local found = redis.call('HMGET', b, 'holder', 'token', 'expires_at')
local token
if found[1] and is_unexpired(tonumber(found[3]), time) then
    if found[1] ~= ARGV[2] then return {1, found[1], found[3]} end
    token = found[2]
else
    token = integer_text(next_token(redis.call('GET', KEYS[2])))
    redis.call('SET', KEYS[2], token)
end
redis.call('HSET', b, 'holder', ARGV[2], 'token', token, 'expires_at', integer_text(time + tonumber(ARGV[3])))
redis.call('PEXPIRE', b, tonumber(ARGV[3]) + 60000)
return {0, token, ''}
