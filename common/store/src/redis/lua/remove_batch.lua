-- KEYS: the batch, the index of batches. ARGV: id, before. Replies: 1 removed, 0 kept, 2 kept, as are all batches
-- created later.
local found = redis.call('HMGET', b, 'created_at', 'ended_at', 'rules')
if not found[1] then
    redis.call('ZREM', KEYS[2], ARGV[2])
    return 0
end
local before, time = tonumber(ARGV[3]), now()
-- A batch created in the future says nothing about later ones.
local is_ahead = tonumber(found[1]) > time + 300000
if tonumber(found[1]) >= before and not is_ahead then return 2 end
if tonumber(found[2] or found[1]) >= before then return 0 end
for _, lease in ipairs(redis.call('HVALS', b .. KEY_SUFFIXES.leases)) do
    if is_unexpired(tonumber(string.match(lease, '^%d+|(%d+)|')), time) then return 0 end
end
for _, suffix in pairs(KEY_SUFFIXES) do redis.call('UNLINK', b .. suffix) end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREM', string.match(b, '^(.*){') .. 'history:' .. found[3], ARGV[2])
redis.call('SREM', string.match(b, '^(.*){') .. 'unfinished:' .. found[3], ARGV[2])
return 1
