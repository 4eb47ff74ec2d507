-- KEYS as in record_provenance.lua. ARGV: the source, the target, then per tag its name and its buckets.
forget_provenance(b, KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[3], 4, #ARGV)
return 1
