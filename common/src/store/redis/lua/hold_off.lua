-- ARGV: blocked until.
local ends, time = tonumber(ARGV[2]), now()
local held = tonumber(redis.call('GET', b) or '0')
if ends <= time or (ends <= held and lasts(held, time)) then return 0 end
redis.call('SET', b, text(ends), 'PX', text(ends - time + 1000))
return 1
