//! What the programs of imgsync share.
