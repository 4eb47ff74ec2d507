//! The worker of imgsync: moves bytes.
