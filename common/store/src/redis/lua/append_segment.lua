-- ARGV: key; number of chunks; number of failures; first index and number that the first chunk was signed for (-1:
-- any); per chunk its length, plan, checksum, and states as digits; per failure its position and encoding. Replies 3 with the
-- actual position if the chunks were signed for another.
if redis.call('EXISTS', b) == 0 then return {-1, 0} end
if redis.call('HEXISTS', b .. KEY_SUFFIXES.repositories, ARGV[2]) == 1 then return {1, 0} end
local batch_state, is_planned = number(b, 'state'), redis.call('HEXISTS', b, 'planned_at') == 1
if not is_live(batch_state) or is_planned then return {2, batch_state} end
local first = number(b, 'total')
local at, index = 7, first
local counts = {}
for code = 0, 7 do counts[code] = 0 end
local chunk_number = math.floor(redis.call('STRLEN', b .. KEY_SUFFIXES.chunk_starts) / 4)
if ARGV[5] ~= '-1' and (tonumber(ARGV[5]) ~= first or tonumber(ARGV[6]) ~= chunk_number) then
    return {3, first, chunk_number}
end
for _ = 1, tonumber(ARGV[3]) do
    local length, plan, checksum, states = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
    at = at + 4
    redis.call('HSET', b .. KEY_SUFFIXES.chunks, chunk_number, plan)
    redis.call('APPEND', b .. KEY_SUFFIXES.chunk_starts, struct.pack('>I4', index))
    local mark = struct.pack('>I4', (checksum + index) % 4294967296)
    redis.call('SETRANGE', b .. KEY_SUFFIXES.chunk_marks, 4 * chunk_number, mark)
    chunk_number = chunk_number + 1
    local sets = {}
    for task = 1, length do
        local code = string.byte(states, task) - 48
        counts[code] = counts[code] + 1
        if code ~= NEW then
            sets[#sets + 1] = 'SET'
            sets[#sets + 1] = 'u4'
            sets[#sets + 1] = '#' .. (index + task - 1)
            sets[#sets + 1] = code
        end
    end
    if #sets > 0 then redis.call('BITFIELD', b .. KEY_SUFFIXES.states, unpack(sets)) end
    index = index + length
end
local bytes = math.ceil(index / 2)
if bytes > 0 and redis.call('STRLEN', b .. KEY_SUFFIXES.states) < bytes then
    redis.call('SETRANGE', b .. KEY_SUFFIXES.states, bytes - 1, '\0')
end
for _ = 1, tonumber(ARGV[4]) do
    redis.call('HSET', b .. KEY_SUFFIXES.failures, first + tonumber(ARGV[at]), ARGV[at + 1])
    at = at + 2
end
for code = 0, 7 do
    if counts[code] > 0 then
        redis.call('HINCRBY', b, 's' .. code, counts[code])
        if RESULT_FIELDS[code] then count_in_bucket(b, RESULT_FIELDS[code], counts[code]) end
    end
end
redis.call('HSET', b, 'total', index)
redis.call('HSET', b .. KEY_SUFFIXES.repositories, ARGV[2], first)
update_batch_state(b, now())
return {0, first}
