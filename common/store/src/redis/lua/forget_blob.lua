-- KEYS: the bucket of a blob in each generation. ARGV: blob, repository.
for _, key in ipairs(KEYS) do
    if redis.call('HGET', key, ARGV[2]) == ARGV[3] then redis.call('HDEL', key, ARGV[2]) end
end
return 1
