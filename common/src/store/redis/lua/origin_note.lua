-- KEYS: what was made of a source at a target, the targets of the source, the sources of the target, all sources. ARGV: the
-- source, the target, then the tag, its buckets and the record. Says the sources of the target.
local most, marker = 120, '\1'
redis.call('SADD', KEYS[2], ARGV[3])
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('SADD', KEYS[4], ARGV[2])
local keys = {b, b .. ':' .. ARGV[5], b .. ':' .. ARGV[6]}
local key
for _, one in ipairs(keys) do
    if redis.call('HEXISTS', one, ARGV[4]) == 1 then key = one break end
end
if not key then
    key = keys[3]
    for _, one in ipairs(keys) do
        if redis.call('HLEN', one) < most then key = one break end
    end
end
redis.call('HSET', key, ARGV[4], ARGV[7])
-- Whoever reads all looks for buckets only where there are any.
if key ~= b then redis.call('HSET', b, marker, '') end
return redis.call('SMEMBERS', KEYS[3])
