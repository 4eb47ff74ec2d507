//! The coordinator of imgsync: decides, watches, shows.
