if redis.call('EXISTS', b) == 0 then return 0 end
local time = now()
redis.call('HSETNX', b, 'planned_at', integer_text(time))
update_batch_state(b, time)
return 1
