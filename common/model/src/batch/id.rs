//! Batch ids. See [`BatchId`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use imgsync_oci::sanitize::sanitize;

/// Id of a batch: a UUIDv7 (RFC 9562, section 5.7), so that ids sort by creation time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(Uuid);

/// Error of parsing a [`BatchId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a batch id such as 01890a5d-ac96-774b-bcce-b302099a8057")]
pub struct ParseBatchIdError {
    text: String,
}

impl BatchId {
    /// Generates an id, greater than all earlier ones of this process.
    pub fn generate() -> BatchId {
        BatchId(Uuid::now_v7())
    }

    /// Generates an id greater than `newest`, whatever the clock says.
    pub fn generate_after(newest: Option<BatchId>) -> BatchId {
        let id = BatchId::generate();
        match newest {
            Some(newest) if newest >= id => {
                let millis = (newest.0.as_u128() >> 80).saturating_add(1);
                let random = rand::random::<[u8; 10]>();
                let millis = u64::try_from(millis).unwrap_or(u64::MAX);
                BatchId(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
            }
            _ => id,
        }
    }

    /// Creates an id from its 16 bytes, as stores keep it.
    pub fn from_bytes(bytes: [u8; 16]) -> BatchId {
        BatchId(Uuid::from_bytes(bytes))
    }

    /// Returns the 16 bytes, which sort like the ids.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for BatchId {
    type Err = ParseBatchIdError;

    fn from_str(text: &str) -> Result<BatchId, ParseBatchIdError> {
        let refuse = || ParseBatchIdError { text: sanitize(text).into_owned() };
        // Accepts only the printed form: ids are compared as text elsewhere.
        if text.len() != 36 {
            return Err(refuse());
        }
        Uuid::try_parse(text).map(BatchId).map_err(|_| refuse())
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for BatchId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BatchId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BatchId, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_when_they_were_made() {
        let ids: Vec<_> = std::iter::repeat_with(BatchId::generate).take(100).collect();
        assert!(ids.is_sorted());
        assert_eq!(BatchId::from_bytes(*ids[0].as_bytes()), ids[0]);
    }

    #[test]
    fn a_new_id_is_later_than_the_newest_although_that_was_made_in_the_future() {
        assert!(BatchId::generate_after(None) < BatchId::generate());
        let future = jiff::Timestamp::now().as_millisecond().unsigned_abs() + 400 * 86_400_000;
        let future = BatchId(uuid::Builder::from_unix_timestamp_millis(future, &[255; 10]).into_uuid());
        let next = BatchId::generate_after(Some(future));
        assert!(next > future && BatchId::generate_after(Some(next)) > next);
        assert_eq!(next.to_string().parse(), Ok(next));
        assert!(BatchId::generate_after(Some(BatchId::generate())) < future);
    }

    #[test]
    fn what_is_printed_parses_back_and_other_forms_are_refused() {
        let id = BatchId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "0189", "{01890a5d-ac96-774b-bcce-b302099a8057}", &id.to_string().replace('-', "")] {
            assert!(text.parse::<BatchId>().is_err(), "{text}");
        }
    }
}
