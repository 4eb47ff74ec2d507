if redis.call('EXISTS', b) == 0 then return 0 end
local time = now()
redis.call('HSETNX', b, 'planned_at', integer_text(time))
end_or_reopen_batch(b, time)
return 1
