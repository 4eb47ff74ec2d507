-- KEYS: the account's quota, the block of its pulls. ARGV: remaining, limit or '', reserve, 'reset' or 'length', that
-- duration. The same algorithm as the quota window in Rust.
local KEPT_FOR = 86400000
local time = now()
local left, limit, reserve, span = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[6])
local found = redis.call('HMGET', b, 'began', 'left')
local began, before = tonumber(found[1] or '0') or 0, tonumber(found[2] or '0') or 0
-- A window that started in the future is unknown.
if began > time + 300000 then began, before = 0, 0 end
local much = limit and math.max(limit / 4, 1) or before + 10
local is_over = ARGV[5] == 'length' and began + span <= time
local is_new = began > 0 and (left >= before + much or is_over)
if began <= 0 or is_new then began = time end
redis.call('HSET', b, 'began', text(began), 'left', text(left))
redis.call('PEXPIRE', b, KEPT_FOR + span)
local ends = time + span
if ARGV[5] == 'length' then ends = began + span end
if is_new then redis.call('DEL', KEYS[2]) end
local held = tonumber(redis.call('GET', KEYS[2]) or '0')
if not lasts(held, time) then held = 0 end
if left <= reserve and ends > time and ends > held then
    redis.call('SET', KEYS[2], text(ends), 'PX', text(ends - time + 1000))
end
return ends - time
