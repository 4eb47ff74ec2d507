//! [`BlobIndex`] in Redis: for each target and generation 4,096 hashes, from the beginning of a digest to a repository.

use async_trait::async_trait;

use super::{Call, RedisStore};
use crate::batch::{End, Home};
use crate::error::Result;
use crate::image::Digest;
use crate::store::{BLOB_GENERATION, BlobIndex};

/// As much of a digest as tells blobs apart.
const BYTES: usize = 20;

#[async_trait]
impl BlobIndex for RedisStore {
    async fn blob_homes(&self, end: &End, blobs: &[Digest]) -> Result<Vec<Option<Home>>> {
        if blobs.is_empty() {
            return Ok(Vec::new());
        }
        let tried = format!("looking for blobs at {end}");
        let generation = self.generation(&tried).await?;
        let mut pipe = redis::pipe();
        for blob in blobs {
            for generation in [generation, generation - 1] {
                let (key, field) = self.place_of(end, blob, generation);
                pipe.hget(key, field);
            }
        }
        let found: Vec<Option<String>> = self.query(&tried, &pipe).await?;
        let home = |path: &Option<String>| path.as_deref().and_then(|path| Home::new(end.clone(), path).ok());
        Ok(found.chunks(2).map(|both| both.iter().find_map(home)).collect())
    }

    async fn learn_blobs(&self, home: &Home, blobs: &[Digest]) -> Result<()> {
        if blobs.is_empty() {
            return Ok(());
        }
        let tried = format!("remembering blobs of {home}");
        let generation = self.generation(&tried).await?;
        let mut pipe = redis::pipe();
        for blob in blobs {
            let (key, field) = self.place_of(home.end(), blob, generation);
            pipe.hset(&key, field, home.path()).ignore();
            pipe.expire(&key, i64::try_from(2 * BLOB_GENERATION.as_secs()).unwrap_or(i64::MAX)).ignore();
        }
        self.query::<()>(&tried, &pipe).await
    }

    async fn forget_blob(&self, home: &Home, blob: &Digest) -> Result<()> {
        let tried = format!("forgetting a blob of {home}");
        let generation = self.generation(&tried).await?;
        let (key, field) = self.place_of(home.end(), blob, generation);
        let (before, _) = self.place_of(home.end(), blob, generation - 1);
        let call = Call::on(key).key(before).bytes(field).arg(home.path());
        self.script::<i64>(&tried, &self.0.scripts.blobs_forget, call).await.map(drop)
    }
}

impl RedisStore {
    async fn generation(&self, tried: &str) -> Result<i64> {
        let length = i64::try_from(BLOB_GENERATION.as_millis()).unwrap_or(i64::MAX);
        Ok(self.now(tried).await? / length)
    }

    fn place_of(&self, end: &End, blob: &Digest, generation: i64) -> (String, Vec<u8>) {
        let key = self.key(&format!("bl:{end}:{generation}:{}", &blob.hex()[..3]));
        (key, hex::decode(&blob.hex()[..BYTES * 2]).unwrap_or_default())
    }
}
