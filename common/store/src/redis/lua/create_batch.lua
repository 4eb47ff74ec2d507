-- KEYS: the batch, the index of batches, the lease under which it is created, [the superseded batch]. ARGV: id, rules,
-- options, supersedes, signature of the options, holder and token of the lease (empty: none is needed). Replies 0 if the
-- lease is lost.
if redis.call('EXISTS', b) == 1 then return 1 end
if ARGV[7] ~= '' and not is_lease_held(KEYS[3], ARGV[7], ARGV[8]) then return 0 end
local time = now()
redis.call('HSET', b, 'id', ARGV[2], 'state', BATCH_RUNNING, 'run', 0, 'last_token', 0, 'rules', ARGV[3],
    'options', ARGV[4], 'tag', ARGV[6], 'created_at', integer_text(time), 'total', 0,
    's0', 0, 's1', 0, 's2', 0, 's3', 0, 's4', 0, 's5', 0, 's6', 0, 's7', 0)
redis.call('ZADD', KEYS[2], 0, ARGV[2])
redis.call('SADD', string.match(b, '^(.*){') .. 'unfinished:' .. ARGV[3], ARGV[2])
local history = string.match(b, '^(.*){') .. 'history:' .. ARGV[3]
redis.call('ZADD', history, 0, ARGV[2])
redis.call('ZREMRANGEBYRANK', history, 0, -1 - MAX_HISTORY)
redis.call('EXPIRE', history, HISTORY_TTL_SECONDS)
if ARGV[5] ~= '' then
    redis.call('HSET', b, 'supersedes', ARGV[5])
    stop_batch(KEYS[4], BATCH_SUPERSEDED, time)
end
return 1
