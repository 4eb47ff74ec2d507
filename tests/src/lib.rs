//! The harness: real servers, a registry that fails on command, images to copy.
