-- KEYS: the hash of a pair of source and target. ARGV: per tag its name, its buckets, the expected record and the new
-- one. A record written meanwhile stays.
for at = 2, #ARGV, 5 do
    for _, key in ipairs({b, b .. ':' .. ARGV[at + 1], b .. ':' .. ARGV[at + 2]}) do
        if redis.call('HGET', key, ARGV[at]) == ARGV[at + 3] then
            redis.call('HSET', key, ARGV[at], ARGV[at + 4])
            break
        end
    end
end
return 1
