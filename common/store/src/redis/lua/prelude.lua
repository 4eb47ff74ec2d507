-- Prelude of all scripts. ARGV[1] is the time in milliseconds since 1970; empty: use this server's clock.
-- Keys of a batch begin with its base, `b`:
--   b               hash    state, run, last_token, rules, options, tag, …, total, s0 … s7 (tasks by state), usage
--   b:states        u4 × n  states by index, the first in the upper half of a byte
--   b:leases        hash    leases of running tasks: token|expiry|worker
--   b:attempts      hash    run and attempts of retried or requeued tasks: run|attempts
--   b:losses        hash    number of lost leases of tasks
--   b:retries       zset    retries by due time
--   b:failures      hash    failures: kind|attempts|registry|error
--   b:chunks        hash    chunks of the plan by number, each with its signature (signed.rs)
--   b:chunk_starts  u32 × n first indexes of the chunks
--   b:chunk_marks   u32 × n checksums of the chunks, each plus its first index
--   b:repositories  hash    repositories in the plan
--   b:unlisted      hash    listing failures
--   b:buckets       hash    time buckets: ended tasks by result (bucket, c u f x), and bytes (bucket, b)
--   b:slowest       zset    slowest tasks: index|bytes|worker
--   b:workers       hash    work per worker: ended and failed tasks, bytes, milliseconds (e f b m, worker)
--   b:pruned        hash    prune records
--   b:empty_rules   hash    rules that selected no tag
--   b:notifications hash    sent notifications
-- The keys of an ended batch expire, and so do later writes to it; nothing is written for an unknown batch.
local KEY_SUFFIXES = {
    base = '',
    states = ':states',
    leases = ':leases',
    attempts = ':attempts',
    losses = ':losses',
    retries = ':retries',
    failures = ':failures',
    chunks = ':chunks',
    chunk_starts = ':chunk_starts',
    chunk_marks = ':chunk_marks',
    repositories = ':repositories',
    unlisted = ':unlisted',
    buckets = ':buckets',
    slowest = ':slowest',
    workers = ':workers',
    pruned = ':pruned',
    empty_rules = ':empty_rules',
    notifications = ':notifications',
}
local NEW, QUEUED, RUNNING, RETRY, COPIED, UNCHANGED, FAILED, CANCELLED = 0, 1, 2, 3, 4, 5, 6, 7
local BATCH_RUNNING, BATCH_PAUSED, BATCH_CANCELLED, BATCH_SUPERSEDED, BATCH_DONE = 0, 1, 2, 3, 4
-- 30 days, in seconds.
local BATCH_TTL_SECONDS = 2592000
-- Maximum number of batches in the run history of a rule, and its TTL after the last batch: 180 days, in seconds.
local MAX_HISTORY, HISTORY_TTL_SECONDS = 1000, 15552000
-- TTL of requests that add, in milliseconds: longer than the longest retry of a call.
local REQUEST_TTL_MS = 7200000
-- Maximum number of time buckets, their initial width in milliseconds, and the number of slowest tasks kept.
local MAX_BUCKETS, INITIAL_BUCKET_WIDTH_MS, MAX_SLOWEST = 120, 1000, 20
-- Maximum fields of a hash of tags, which keeps it in the compact encoding.
local MAX_COMPACT_FIELDS = 120
-- Field of a time bucket by task state.
local RESULT_FIELDS = {[COPIED] = 'c', [UNCHANGED] = 'u', [FAILED] = 'f', [CANCELLED] = 'x'}

local function integer_text(number)
    return string.format('%.0f', number)
end

-- The time in microseconds since 1970, the same throughout a script.
local script_time
local function now_micros()
    if not script_time then
        if ARGV[1] ~= '' then
            script_time = tonumber(ARGV[1]) * 1000
        else
            local time = redis.call('TIME')
            script_time = time[1] * 1000000 + time[2]
        end
    end
    return script_time
end

-- The time in milliseconds since 1970.
local function now()
    return math.floor(now_micros() / 1000)
end

-- Whether a deadline is still ahead. One more than 25 hours ahead (MAX_DEADLINE_AHEAD) was written by a wrong clock.
local function is_unexpired(deadline, time)
    return deadline > time and deadline <= time + 90000000
end

-- The next fencing token: greater than the last, and never below this server's time in microseconds, so that a store
-- that lost its latest writes does not issue a token twice.
local function next_token(last)
    return math.max((tonumber(last or '0') or 0) + 1, now_micros())
end

-- Whether a request that adds is new. A client without a reply repeats it under the same id, and it may have taken
-- effect.
local function is_first(request)
    return redis.call('SET', request, '1', 'NX', 'PX', REQUEST_TTL_MS) ~= false
end

local function number(b, field)
    return tonumber(redis.call('HGET', b, field) or '0') or 0
end

local function task_state(b, index)
    return redis.call('BITFIELD', b .. KEY_SUFFIXES.states, 'GET', 'u4', '#' .. index)[1]
end

-- Adds to the current time bucket. Buckets widen until the batch's duration fits.
local function count_in_bucket(b, field, amount)
    local key = b .. KEY_SUFFIXES.buckets
    local found = redis.call('HMGET', b, 'created_at', 'bucket_width')
    local old_width = tonumber(found[2] or INITIAL_BUCKET_WIDTH_MS)
    local elapsed = math.max(0, now() - tonumber(found[1]))
    local width = old_width
    while math.floor(elapsed / width) >= MAX_BUCKETS do width = width * 2 end
    if width > old_width then
        local old = redis.call('HGETALL', key)
        redis.call('DEL', key)
        for at = 1, #old, 2 do
            local bucket, old_field = string.match(old[at], '^(%d+)(%a)$')
            local wider = integer_text(math.floor(bucket * old_width / width))
            redis.call('HINCRBY', key, wider .. old_field, old[at + 1])
        end
        redis.call('HSET', b, 'bucket_width', integer_text(width))
    end
    redis.call('HINCRBY', key, integer_text(math.floor(elapsed / width)) .. field, amount)
end

-- Adds to the work of a worker. The usage is in ARGV, as for `add_usage`.
local function add_worker_stats(b, worker, to, from)
    local key, bytes, millis = b .. KEY_SUFFIXES.workers, ARGV[from], ARGV[from + 5]
    if to then redis.call('HINCRBY', key, 'e' .. worker, 1) end
    if to == FAILED then redis.call('HINCRBY', key, 'f' .. worker, 1) end
    if bytes ~= '0' then
        redis.call('HINCRBY', key, 'b' .. worker, bytes)
        count_in_bucket(b, 'b', bytes)
    end
    if millis ~= '0' then redis.call('HINCRBY', key, 'm' .. worker, millis) end
end

-- Keeps a task if it is among the slowest. The usage is in ARGV, as for `add_usage`.
local function record_slow_task(b, index, worker, from)
    local key, bytes, millis = b .. KEY_SUFFIXES.slowest, ARGV[from], ARGV[from + 5]
    if millis == '0' then return end
    -- Few of many tasks are.
    if redis.call('ZCOUNT', key, millis, '+inf') >= MAX_SLOWEST then return end
    redis.call('ZADD', key, millis, index .. '|' .. bytes .. '|' .. worker)
    redis.call('ZREMRANGEBYRANK', key, 0, -MAX_SLOWEST - 1)
end

local function move_task(b, index, from, to)
    if RESULT_FIELDS[to] then count_in_bucket(b, RESULT_FIELDS[to], 1) end
    redis.call('BITFIELD', b .. KEY_SUFFIXES.states, 'SET', 'u4', '#' .. index, to)
    redis.call('HINCRBY', b, 's' .. from, -1)
    redis.call('HINCRBY', b, 's' .. to, 1)
end

-- Run of a task, and the attempts counted in it.
local function run_and_attempts(b, index)
    local found = redis.call('HGET', b .. KEY_SUFFIXES.attempts, index)
    if not found then return 0, 0 end
    local run, attempts = string.match(found, '^(%d+)|(%d+)$')
    return tonumber(run), tonumber(attempts)
end

-- Token, expiry and holder of a task's lease.
local function read_lease(b, index)
    local found = redis.call('HGET', b .. KEY_SUFFIXES.leases, index)
    if not found then return nil end
    local token, expires_at, worker = string.match(found, '^(%d+)|(%d+)|(.*)$')
    return tonumber(token), tonumber(expires_at), worker
end

-- The worker, token and expiry of a running task's lease, if it belongs to this owner (token|worker).
local function own_lease(b, index, owner)
    local token, expires_at, worker = read_lease(b, index)
    if not token or integer_text(token) .. '|' .. worker ~= owner then return nil end
    return worker, token, expires_at
end

local function set_lease(b, index, token, expires_at, worker)
    local lease = integer_text(token) .. '|' .. integer_text(expires_at) .. '|' .. worker
    redis.call('HSET', b .. KEY_SUFFIXES.leases, index, lease)
end

local function is_stopped(batch_state)
    return batch_state == BATCH_CANCELLED or batch_state == BATCH_SUPERSEDED
end

local function is_live(batch_state)
    return batch_state == BATCH_RUNNING or batch_state == BATCH_PAUSED
end

-- Adds usage, in ARGV from `from` on: bytes copied, mounted and reused, requests to source and target, milliseconds.
local function add_usage(b, from)
    local fields = {'copied', 'mounted', 'reused', 'source_requests', 'target_requests', 'millis'}
    for at, field in ipairs(fields) do
        if ARGV[from + at - 1] ~= '0' then redis.call('HINCRBY', b, field, ARGV[from + at - 1]) end
    end
end

-- Ends a batch whose last task has ended, and reopens one that has tasks again.
local function update_batch_state(b, time)
    local found = redis.call('HMGET', b, 'state', 'planned_at', 'ended_at', 's0', 's1', 's2', 's3', 'rules', 'id')
    local batch_state = tonumber(found[1])
    local open = tonumber(found[4]) + tonumber(found[5]) + tonumber(found[6]) + tonumber(found[7])
    local has_ended = open == 0 and ((found[2] and true) or is_stopped(batch_state))
    local unfinished = string.match(b, '^(.*){') .. 'unfinished:' .. found[8]
    if has_ended and not found[3] then
        if is_live(batch_state) then redis.call('HSET', b, 'state', BATCH_DONE) end
        redis.call('HSET', b, 'ended_at', integer_text(time))
        redis.call('SREM', unfinished, found[9])
        for _, suffix in pairs(KEY_SUFFIXES) do redis.call('EXPIRE', b .. suffix, BATCH_TTL_SECONDS) end
    elseif not has_ended then
        if batch_state == BATCH_DONE then redis.call('HSET', b, 'state', BATCH_RUNNING) end
        if found[3] then
            redis.call('HDEL', b, 'ended_at')
            redis.call('SADD', unfinished, found[9])
            for _, suffix in pairs(KEY_SUFFIXES) do redis.call('PERSIST', b .. suffix) end
        end
    end
end

-- Moves all tasks by state as `to` says. Returns the number moved per state. The server answers no other
-- client meanwhile, so there is no interpreter step per task: the counts per state are known, and bytes are replaced
-- at once.
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
    local bytes = redis.call('GET', b .. KEY_SUFFIXES.states) or ''
    local states = string.gsub(string.sub(bytes, 1, whole), '.', map)
    if total % 2 == 1 then
        -- The lower half of the last byte is no task.
        local high = math.floor((string.byte(bytes, whole + 1) or 0) / 16)
        states = states .. string.char((to[high] or high) * 16)
    end
    redis.call('SETRANGE', b .. KEY_SUFFIXES.states, 0, states)
    for code = 0, 7 do
        if moved[code] > 0 then
            redis.call('HINCRBY', b, 's' .. code, -moved[code])
            redis.call('HINCRBY', b, 's' .. to[code], moved[code])
            if RESULT_FIELDS[to[code]] then count_in_bucket(b, RESULT_FIELDS[to[code]], moved[code]) end
        end
    end
    return moved, any
end

local function stop_batch(b, how, time)
    local batch_state = number(b, 'state')
    if redis.call('EXISTS', b) == 0 then return nil end
    if not is_live(batch_state) then return batch_state end
    redis.call('HSET', b, 'state', how)
    -- Running tasks, too: no further result of them counts, whether or not their worker lives.
    move_all(b, {[NEW] = CANCELLED, [QUEUED] = CANCELLED, [RUNNING] = CANCELLED, [RETRY] = CANCELLED})
    redis.call('DEL', b .. KEY_SUFFIXES.retries, b .. KEY_SUFFIXES.leases)
    update_batch_state(b, time)
    return how
end

-- Whether a named lease is held by this holder with this token.
local function is_lease_held(key, holder, token)
    local found = redis.call('HMGET', key, 'holder', 'token', 'expires_at')
    return found[1] == holder and found[2] == token and is_unexpired(tonumber(found[3]), now())
end

-- Caches tags of a scope, whose name is kept in an index. ARGV[from..to] has for each tag its name, its two buckets and
-- its encoded value.
local function cache_tags(scope, index, name, ttl, from, to)
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
                if redis.call('HLEN', one) < MAX_COMPACT_FIELDS then key = one break end
            end
        end
        redis.call('HSET', key, tag, ARGV[at + 3])
        touched[key] = true
    end
    touched[scope] = true
    for key in pairs(touched) do redis.call('EXPIRE', key, ttl) end
end

-- Field of a pair's first hash that says that there are bucket hashes; not a valid tag.
local BUCKETS_MARKER = '\1'

-- Records the provenance of a target tag. `key` is the hash of the pair of source and target; then the keys of the
-- source's targets, the target's sources, and all sources. ARGV from `at` on: the tag, its two buckets and the record.
local function record_provenance(key, targets, sources, all, from, to, at)
    local tag = ARGV[at]
    redis.call('SADD', targets, to)
    redis.call('SADD', sources, from)
    redis.call('SADD', all, from)
    local keys = {key, key .. ':' .. ARGV[at + 1], key .. ':' .. ARGV[at + 2]}
    local chosen
    for _, one in ipairs(keys) do
        if redis.call('HEXISTS', one, tag) == 1 then chosen = one break end
    end
    if not chosen then
        chosen = keys[3]
        for _, one in ipairs(keys) do
            if redis.call('HLEN', one) < MAX_COMPACT_FIELDS then chosen = one break end
        end
    end
    redis.call('HSET', chosen, tag, ARGV[at + 3])
    -- Readers look for bucket hashes only if there are any.
    if chosen ~= key then redis.call('HSET', key, BUCKETS_MARKER, '') end
end

-- Deletes provenance records. ARGV[first..last] has for each tag its name and its two buckets.
local function forget_provenance(key, targets, sources, all, from, to, first, last)
    for at = first, last, 3 do
        for _, one in ipairs({key, key .. ':' .. ARGV[at + 1], key .. ':' .. ARGV[at + 2]}) do
            redis.call('HDEL', one, ARGV[at])
        end
    end
    local left = redis.call('HLEN', key)
    if left > 1 or left == 1 and redis.call('HEXISTS', key, BUCKETS_MARKER) == 0 then return end
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
