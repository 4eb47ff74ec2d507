-- ARGV: blocked until.
local deadline, time = tonumber(ARGV[2]), now()
local blocked_until = tonumber(redis.call('GET', b) or '0')
if deadline <= time or (deadline <= blocked_until and is_unexpired(blocked_until, time)) then return 0 end
redis.call('SET', b, integer_text(deadline), 'PX', integer_text(deadline - time + 1000))
return 1
