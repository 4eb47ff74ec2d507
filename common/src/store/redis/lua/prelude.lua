-- Prelude of all scripts. ARGV[1] is the time in milliseconds since 1970; empty: use this server's clock.
-- Keys of a batch begin with its base, `b`:
--   b    hash    control, run, epoch, rules, options, tag, …, total, s0 … s7 (tasks by state), usage
--   b:s  u4 × n  states by index, the first in the upper half of a byte
--   b:l  hash    leases of running tasks: token|until|worker
--   b:m  hash    run and attempts of retried or requeued tasks: run|attempts
--   b:x  hash    number of lost leases of tasks
--   b:r  zset    retries by due time
--   b:f  hash    failures: kind|attempts|error
--   b:p  hash    chunks of the plan by number, each with its signature (signed.rs);  b:c  u32 × n  their first indexes
--   b:h  hash    time buckets: ended tasks by result (bucket, c u f x), and bytes (bucket, b)
--   b:t  zset    slowest tasks: index|bytes|worker
--   b:w  hash    work per worker: ended and failed tasks, bytes, milliseconds (e f b m, worker)
--   b:g  hash    prune records
--   b:k  hash    repositories in the plan;  b:u  hash  listing failures
--   b:e  hash    rules that selected no tag;  b:n  hash  sent notifications
-- The keys of an ended batch expire, and so do later writes to it; nothing is written for an unknown batch.
local NEW, QUEUED, RUNNING, RETRY, COPIED, UNCHANGED, FAILED, CANCELLED = 0, 1, 2, 3, 4, 5, 6, 7
local C_RUNNING, C_PAUSED, C_CANCELLED, C_SUPERSEDED, C_DONE = 0, 1, 2, 3, 4
local PARTS = {'', ':s', ':l', ':m', ':x', ':r', ':f', ':p', ':c', ':k', ':u', ':h', ':t', ':w', ':g', ':e', ':n'}
-- 30 days, in seconds.
local KEPT = 2592000
-- TTL of requests that add, in milliseconds: longer than the longest retry of a call.
local REQUEST_KEPT = 7200000
-- Maximum number of time buckets, their initial width in milliseconds, and the number of slowest tasks kept.
local MAX_PARTS, WIDTH, MAX_SLOWEST = 120, 1000, 20
local ENDS = {[COPIED] = 'c', [UNCHANGED] = 'u', [FAILED] = 'f', [CANCELLED] = 'x'}

local function text(number)
    return string.format('%.0f', number)
end

local function now()
    if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether a deadline is still ahead. One more than 25 hours ahead (LONGEST_AHEAD) was written by a wrong clock.
local function lasts(ends, time)
    return ends > time and ends <= time + 90000000
end

-- The next fencing token: greater than the last, and never below this server's time in microseconds, so that a store
-- that lost its latest writes does not issue a token twice.
local function next_token(last)
    local floor
    if ARGV[1] ~= '' then
        floor = tonumber(ARGV[1]) * 1000
    else
        local time = redis.call('TIME')
        floor = time[1] * 1000000 + time[2]
    end
    return math.max((tonumber(last or '0') or 0) + 1, floor)
end

-- Whether a request that adds is new. A client without a reply repeats it under the same id, and it may have taken
-- effect.
local function is_first(request)
    return redis.call('SET', request, '1', 'NX', 'PX', REQUEST_KEPT) ~= false
end

local function number(b, field)
    return tonumber(redis.call('HGET', b, field) or '0') or 0
end

local function state(b, index)
    return redis.call('BITFIELD', b .. ':s', 'GET', 'u4', '#' .. index)[1]
end

-- Adds to the current time bucket. Buckets widen until the batch's duration fits.
local function note(b, what, amount)
    local found = redis.call('HMGET', b, 'created', 'width')
    local width = tonumber(found[2] or WIDTH)
    local passed = math.max(0, now() - tonumber(found[1]))
    local wide = width
    while math.floor(passed / wide) >= MAX_PARTS do wide = wide * 2 end
    if wide > width then
        local old = redis.call('HGETALL', b .. ':h')
        redis.call('DEL', b .. ':h')
        for at = 1, #old, 2 do
            local part, its = string.match(old[at], '^(%d+)(%a)$')
            redis.call('HINCRBY', b .. ':h', text(math.floor(part * width / wide)) .. its, old[at + 1])
        end
        redis.call('HSET', b, 'width', text(wide))
    end
    redis.call('HINCRBY', b .. ':h', text(math.floor(passed / wide)) .. what, amount)
end

-- Adds to the work of a worker. The usage is in ARGV, as for `spend`.
local function share(b, worker, to, from)
    local key, bytes, millis = b .. ':w', ARGV[from], ARGV[from + 5]
    if to then redis.call('HINCRBY', key, 'e' .. worker, 1) end
    if to == FAILED then redis.call('HINCRBY', key, 'f' .. worker, 1) end
    if bytes ~= '0' then
        redis.call('HINCRBY', key, 'b' .. worker, bytes)
        note(b, 'b', bytes)
    end
    if millis ~= '0' then redis.call('HINCRBY', key, 'm' .. worker, millis) end
end

-- Keeps a task if it is among the slowest.
local function slow(b, index, worker, from)
    if ARGV[from + 5] == '0' then return end
    redis.call('ZADD', b .. ':t', ARGV[from + 5], index .. '|' .. ARGV[from] .. '|' .. worker)
    if redis.call('ZCARD', b .. ':t') > MAX_SLOWEST then redis.call('ZPOPMIN', b .. ':t') end
end

local function move(b, index, from, to)
    if ENDS[to] then note(b, ENDS[to], 1) end
    redis.call('BITFIELD', b .. ':s', 'SET', 'u4', '#' .. index, to)
    redis.call('HINCRBY', b, 's' .. from, -1)
    redis.call('HINCRBY', b, 's' .. to, 1)
end

-- Run of a task, and the attempts counted in it.
local function mark(b, index)
    local found = redis.call('HGET', b .. ':m', index)
    if not found then return 0, 0 end
    local run, attempts = string.match(found, '^(%d+)|(%d+)$')
    return tonumber(run), tonumber(attempts)
end

-- Token, expiry and holder of a task's lease.
local function lease(b, index)
    local found = redis.call('HGET', b .. ':l', index)
    if not found then return nil end
    local epoch, ends, worker = string.match(found, '^(%d+)|(%d+)|(.*)$')
    return tonumber(epoch), tonumber(ends), worker
end

-- The worker, token and expiry of a running task's lease, if it belongs to this owner (token|worker).
local function owned(b, index, owner)
    local token, ends, worker = lease(b, index)
    if not token or text(token) .. '|' .. worker ~= owner then return nil end
    return worker, token, ends
end

local function hold(b, index, epoch, ends, worker)
    redis.call('HSET', b .. ':l', index, text(epoch) .. '|' .. text(ends) .. '|' .. worker)
end

local function is_stopped(control)
    return control == C_CANCELLED or control == C_SUPERSEDED
end

local function is_live(control)
    return control == C_RUNNING or control == C_PAUSED
end

local function spend(b, from)
    local fields = {'copied', 'mounted', 'reused', 'source', 'target', 'millis'}
    for at, field in ipairs(fields) do
        if ARGV[from + at - 1] ~= '0' then redis.call('HINCRBY', b, field, ARGV[from + at - 1]) end
    end
end

-- Ends a batch whose last task has ended, and reopens one that has tasks again.
local function close(b, time)
    local found = redis.call('HMGET', b, 'control', 'sealed', 'ended', 's0', 's1', 's2', 's3', 'rules', 'id')
    local control = tonumber(found[1])
    local open = tonumber(found[4]) + tonumber(found[5]) + tonumber(found[6]) + tonumber(found[7])
    local has_ended = open == 0 and ((found[2] and true) or is_stopped(control))
    local live = string.match(b, '^(.*){') .. 'live:' .. found[8]
    if has_ended and not found[3] then
        if is_live(control) then redis.call('HSET', b, 'control', C_DONE) end
        redis.call('HSET', b, 'ended', text(time))
        redis.call('SREM', live, found[9])
        for _, part in ipairs(PARTS) do redis.call('EXPIRE', b .. part, KEPT) end
    elseif not has_ended then
        if control == C_DONE then redis.call('HSET', b, 'control', C_RUNNING) end
        if found[3] then
            redis.call('HDEL', b, 'ended')
            redis.call('SADD', live, found[9])
            for _, part in ipairs(PARTS) do redis.call('PERSIST', b .. part) end
        end
    end
end

-- Moves all tasks by state as `to` says. Returns the number moved per state. The server answers nobody meanwhile, so
-- there is no interpreter step per task: the counts per state are known, and bytes are replaced at once.
local function move_all(b, to)
    local total, any = number(b, 'total'), 0
    local moved = {}
    for code = 0, 7 do
        moved[code] = to[code] and number(b, 's' .. code) or 0
        any = any + moved[code]
    end
    if any == 0 then return moved, 0 end
    local map = {}
    for byte = 0, 255 do
        local high, low = math.floor(byte / 16), byte % 16
        map[string.char(byte)] = string.char((to[high] or high) * 16 + (to[low] or low))
    end
    local whole = math.floor(total / 2)
    local bytes = redis.call('GET', b .. ':s') or ''
    local states = string.gsub(string.sub(bytes, 1, whole), '.', map)
    if total % 2 == 1 then
        -- The lower half of the last byte is no task.
        local high = math.floor((string.byte(bytes, whole + 1) or 0) / 16)
        states = states .. string.char((to[high] or high) * 16)
    end
    redis.call('SETRANGE', b .. ':s', 0, states)
    for code = 0, 7 do
        if moved[code] > 0 then
            redis.call('HINCRBY', b, 's' .. code, -moved[code])
            redis.call('HINCRBY', b, 's' .. to[code], moved[code])
            if ENDS[to[code]] then note(b, ENDS[to[code]], moved[code]) end
        end
    end
    return moved, any
end

local function stop(b, how, time)
    local control = number(b, 'control')
    if redis.call('EXISTS', b) == 0 then return nil end
    if not is_live(control) then return control end
    redis.call('HSET', b, 'control', how)
    -- Running tasks, too: no further result of them counts, whether or not their worker lives.
    move_all(b, {[NEW] = CANCELLED, [QUEUED] = CANCELLED, [RUNNING] = CANCELLED, [RETRY] = CANCELLED})
    redis.call('DEL', b .. ':r', b .. ':l')
    close(b, time)
    return how
end

-- Whether a named lease is held by this holder with this token.
local function holds(key, holder, token)
    local found = redis.call('HMGET', key, 'holder', 'epoch', 'ends')
    return found[1] == holder and found[2] == token and lasts(tonumber(found[3]), now())
end

-- Caches tags of a scope, whose name is kept in an index. ARGV[from..to] has for each tag its name, its two buckets and
-- its encoded value.
local function learn_tags(scope, index, name, kept, from, to)
    local most = 120
    redis.call('ZADD', index, 0, name)
    local touched = {}
    for at = from, to, 4 do
        local tag = ARGV[at]
        local keys = {scope, scope .. ':' .. ARGV[at + 1], scope .. ':' .. ARGV[at + 2]}
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
    touched[scope] = true
    for key in pairs(touched) do redis.call('EXPIRE', key, kept) end
end

-- Field of a pair's first hash that says that there are bucket hashes; not a valid tag.
local MARKER = '\1'

-- Records the provenance of a target tag. `key` is the hash of the pair of source and target; then the keys of the
-- source's targets, the target's sources, and all sources. ARGV from `at` on: the tag, its two buckets and the record.
local function note_origin(key, targets, sources, all, from, to, at)
    local most, tag = 120, ARGV[at]
    redis.call('SADD', targets, to)
    redis.call('SADD', sources, from)
    redis.call('SADD', all, from)
    local keys = {key, key .. ':' .. ARGV[at + 1], key .. ':' .. ARGV[at + 2]}
    local its
    for _, one in ipairs(keys) do
        if redis.call('HEXISTS', one, tag) == 1 then its = one break end
    end
    if not its then
        its = keys[3]
        for _, one in ipairs(keys) do
            if redis.call('HLEN', one) < most then its = one break end
        end
    end
    redis.call('HSET', its, tag, ARGV[at + 3])
    -- Readers look for bucket hashes only if there are any.
    if its ~= key then redis.call('HSET', key, MARKER, '') end
end

-- Deletes provenance records. ARGV[first..last] has for each tag its name and its two buckets.
local function forget_origins(key, targets, sources, all, from, to, first, last)
    for at = first, last, 3 do
        for _, one in ipairs({key, key .. ':' .. ARGV[at + 1], key .. ':' .. ARGV[at + 2]}) do
            redis.call('HDEL', one, ARGV[at])
        end
    end
    local left = redis.call('HLEN', key)
    if left > 1 or left == 1 and redis.call('HEXISTS', key, MARKER) == 0 then return end
    if left == 1 then
        for bucket = 0, 255 do
            local small, large = string.format('%x', bucket), string.format('%02x', bucket)
            if redis.call('EXISTS', key .. ':' .. small, key .. ':' .. large) > 0 then return end
        end
        redis.call('DEL', key)
    end
    -- The pair has no tags left.
    redis.call('SREM', targets, to)
    redis.call('SREM', sources, from)
    if redis.call('EXISTS', targets) == 0 then redis.call('SREM', all, from) end
end

local b = KEYS[1]
