-- KEYS: the account's quota, the block of its pulls. ARGV: remaining, limit or '', reserve, 'reset' or 'length', that
-- duration. The same algorithm as the quota window in Rust.
local KEY_TTL_MS = 86400000
local time = now()
local remaining, limit, reserve, span = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[6])
local found = redis.call('HMGET', b, 'started_at', 'remaining')
local started_at, last_remaining = tonumber(found[1] or '0') or 0, tonumber(found[2] or '0') or 0
-- A window that started in the future is unknown.
if started_at > time + 300000 then started_at, last_remaining = 0, 0 end
local rise = limit and math.max(limit / 4, 1) or last_remaining + 10
local is_over = ARGV[5] == 'length' and started_at + span <= time
local is_new = started_at > 0 and (remaining >= last_remaining + rise or is_over)
if started_at <= 0 or is_new then started_at = time end
redis.call('HSET', b, 'started_at', integer_text(started_at), 'remaining', integer_text(remaining))
redis.call('PEXPIRE', b, KEY_TTL_MS + span)
local ends = time + span
if ARGV[5] == 'length' then ends = started_at + span end
if is_new then redis.call('DEL', KEYS[2]) end
local blocked_until = tonumber(redis.call('GET', KEYS[2]) or '0')
if not is_unexpired(blocked_until, time) then blocked_until = 0 end
if remaining <= reserve and ends > time and ends > blocked_until then
    redis.call('SET', KEYS[2], integer_text(ends), 'PX', integer_text(ends - time + 1000))
end
return ends - time
