-- KEYS: the hash of a pair of source and target, the source's targets, the target's sources, all sources. ARGV: the
-- source, the target, then the tag, its buckets and the record. Replies the target's sources.
record_provenance(b, KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[3], 4)
return redis.call('SMEMBERS', KEYS[3])
