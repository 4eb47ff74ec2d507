-- KEYS: the set of rules with pending pushes, whose hashes are the key, a colon and the rule: key of a push =
-- first|last|notifications|not before|postponed|digest; then the ids of notifications by time. The key of a whole rule is
-- empty, and its name is in place of the digest. ARGV: maximum pending pushes of a rule that are not postponed, and with
-- those that are, maximum ids, their TTL in milliseconds; then for each push its id (may be empty), key, digest, number of
-- rules, and the id and the name of each rule.
-- Replies the number of new, of pending and of repeated pushes.
local time = now()
local most, most_of_all, most_ids = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local added, coalesced, repeated = 0, 0, 0
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. integer_text(time - tonumber(ARGV[5])))

-- Pushes of each rule that are not postponed, for rules that may have too many: counted once.
local DUE, due_of = '^%d+|%d+|%d+|0|', {}

-- Whether a rule has too many pushes. Those that are postponed are counted only if they may make the difference.
local function is_full(rule, pending)
    local all = redis.call('HLEN', pending)
    if all < most then return false end
    if all >= most_of_all then return true end
    if not due_of[rule] then
        local due = 0
        for _, value in ipairs(redis.call('HVALS', pending)) do
            if string.find(value, DUE) then due = due + 1 end
        end
        due_of[rule] = due
    end
    return due_of[rule] >= most
end

local function add_push(rule, name, key, digest)
    local pending = b .. ':' .. rule
    local found = redis.call('HGET', pending, key)
    if not found and key ~= '' and is_full(rule, pending) then
        -- The whole rule is due.
        key = ''
        found = redis.call('HGET', pending, key)
    end
    local first, notifications = integer_text(time), 1
    if found then
        local old_first, old_notifications = string.match(found, '^(%d+)|%d+|(%d+)|')
        first, notifications = old_first, old_notifications + 1
    end
    if key == '' then digest = name end
    local value = first .. '|' .. integer_text(time) .. '|' .. integer_text(notifications) .. '|0|0|' .. digest
    redis.call('HSET', pending, key, value)
    if due_of[rule] and not (found and string.find(found, DUE)) then due_of[rule] = due_of[rule] + 1 end
    redis.call('SADD', b, rule)
    return not found or key == ''
end

local at = 6
while at <= #ARGV do
    local id, key, digest, rules = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    if id ~= '' and redis.call('ZADD', KEYS[2], 'NX', integer_text(time), id) == 0 then
        repeated = repeated + 1
    else
        local is_new = false
        for number = 1, rules do
            local rule = at + 2 + 2 * number
            if add_push(ARGV[rule], ARGV[rule + 1], key, digest) then is_new = true end
        end
        if is_new then added = added + 1 else coalesced = coalesced + 1 end
    end
    at = at + 4 + 2 * rules
end
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -most_ids - 1)
return {added, coalesced, repeated}
