-- KEYS: the set of rules with pending pushes (add_pushes.lua). ARGV: until when; for each push its rule, its key, the
-- number of its notifications and the time of the first one when it was read, and how often it is postponed now: one that
-- has had a notification since, or is another one, is not postponed.
for at = 3, #ARGV, 5 do
    local pending, key = b .. ':' .. ARGV[at], ARGV[at + 1]
    local found = redis.call('HGET', pending, key)
    local first, last, notifications, digest = string.match(found or '', '^(%d+)|(%d+)|(%d+)|%d+|%d+|(.*)$')
    if notifications == ARGV[at + 2] and first == ARGV[at + 3] then
        local value = first .. '|' .. last .. '|' .. notifications .. '|' .. ARGV[2] .. '|' .. ARGV[at + 4] .. '|' .. digest
        redis.call('HSET', pending, key, value)
    end
end
return 1
