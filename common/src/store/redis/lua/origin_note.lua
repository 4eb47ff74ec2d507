-- KEYS: what was made of a source at a target, the targets of the source, the sources of the target, all sources. ARGV: the
-- source, the target, then the tag, its buckets and the record. Says the sources of the target.
note_origin(b, KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[3], 4)
return redis.call('SMEMBERS', KEYS[3])
