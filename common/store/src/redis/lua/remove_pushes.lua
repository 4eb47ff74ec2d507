-- KEYS: the set of rules with pending pushes (add_pushes.lua). ARGV: for each push its rule, its key, and the number of
-- its notifications and the time of the first one when it was read: one that has had more since, or is another one, stays.
for at = 2, #ARGV, 4 do
    local rule, key = ARGV[at], ARGV[at + 1]
    local found = redis.call('HGET', b .. ':' .. rule, key)
    local first, notifications = string.match(found or '', '^(%d+)|%d+|(%d+)|')
    if notifications == ARGV[at + 2] and first == ARGV[at + 3] then
        redis.call('HDEL', b .. ':' .. rule, key)
        if redis.call('EXISTS', b .. ':' .. rule) == 0 then redis.call('SREM', b, rule) end
    end
end
return 1
