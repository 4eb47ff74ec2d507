//! Batches: what is going to be copied, from rules and listings.
