-- KEYS as of origin_note. ARGV: the source, the target, then of each tag its name and its buckets.
local marker = '\1'
for at = 4, #ARGV, 3 do
    for _, key in ipairs({b, b .. ':' .. ARGV[at + 1], b .. ':' .. ARGV[at + 2]}) do
        redis.call('HDEL', key, ARGV[at])
    end
end
local left = redis.call('HLEN', b)
if left > 1 or left == 1 and redis.call('HEXISTS', b, marker) == 0 then return 0 end
if left == 1 then
    for bucket = 0, 255 do
        if redis.call('EXISTS', b .. ':' .. string.format('%x', bucket), b .. ':' .. string.format('%02x', bucket)) > 0 then
            return 0
        end
    end
    redis.call('DEL', b)
end
-- Nothing is left of the two.
redis.call('SREM', KEYS[2], ARGV[3])
redis.call('SREM', KEYS[3], ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SREM', KEYS[4], ARGV[2]) end
return 1
