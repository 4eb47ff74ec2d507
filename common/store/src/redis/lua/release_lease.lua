-- ARGV: holder.
if redis.call('HGET', b, 'holder') == ARGV[2] then redis.call('DEL', b) end
return 1
