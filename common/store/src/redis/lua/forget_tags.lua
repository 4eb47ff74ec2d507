-- KEYS: the scope, the index of scopes. ARGV: the scope's name, then the tags with their buckets; none: all tags.
-- Replies the number of deleted tags.
local forgotten = 0
if #ARGV > 2 then
    for at = 3, #ARGV, 3 do
        for _, key in ipairs({b, b .. ':' .. ARGV[at + 1], b .. ':' .. ARGV[at + 2]}) do
            forgotten = forgotten + redis.call('HDEL', key, ARGV[at])
        end
    end
    return forgotten
end
local keys = {b}
for bucket = 0, 15 do keys[#keys + 1] = b .. ':' .. string.format('%x', bucket) end
for bucket = 0, 255 do keys[#keys + 1] = b .. ':' .. string.format('%02x', bucket) end
for _, key in ipairs(keys) do
    forgotten = forgotten + redis.call('HLEN', key)
    redis.call('UNLINK', key)
end
redis.call('ZREM', KEYS[2], ARGV[2])
return forgotten
