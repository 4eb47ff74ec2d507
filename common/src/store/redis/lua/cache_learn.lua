-- KEYS: the scope, the index of scopes. ARGV: the scope's name, how long it is kept, then for each tag its name, its
-- buckets and what is known.
local most = 120
redis.call('ZADD', KEYS[2], 0, ARGV[2])
local touched = {}
for at = 4, #ARGV, 4 do
    local tag = ARGV[at]
    local keys = {b, b .. ':' .. ARGV[at + 1], b .. ':' .. ARGV[at + 2]}
    local key
    for _, one in ipairs(keys) do
        if redis.call('HEXISTS', one, tag) == 1 then key = one break end
    end
    if not key then
        key = keys[3]
        for _, one in ipairs(keys) do
            if redis.call('HLEN', one) < most then key = one break end
        end
    end
    redis.call('HSET', key, tag, ARGV[at + 3])
    touched[key] = true
end
touched[b] = true
for key in pairs(touched) do redis.call('EXPIRE', key, ARGV[3]) end
return 1
