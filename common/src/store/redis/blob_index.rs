//! [`BlobIndex`] in Redis: per target and generation 4,096 hashes, from digest prefix to repository; and per generation
//! 4,096 more, from proof to the hour it was given.

use async_trait::async_trait;

use super::{Call, RedisStore};
use crate::batch::{End, Home};
use crate::error::Result;
use crate::image::Digest;
use crate::store::{BLOB_GENERATION, BlobIndex, HashedFile, PROOF_TTL, Proof, is_proof_believed, proof_hour};

/// Bytes of a digest that distinguish blobs.
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

    async fn is_hashed(&self, file: &HashedFile) -> Result<bool> {
        let mut pipe = redis::pipe();
        pipe.hget(self.key(&format!("hf:{}", file.folder)), file.digest.to_string());
        let (known,): (Option<String>,) = self.query("looking for a file that was hashed", &pipe).await?;
        Ok(known.is_some_and(|version| version == file.version))
    }

    async fn note_hashed(&self, file: &HashedFile) -> Result<()> {
        let key = self.key(&format!("hf:{}", file.folder));
        let mut pipe = redis::pipe();
        pipe.hset(&key, file.digest.to_string(), &file.version).ignore();
        pipe.expire(&key, i64::try_from(2 * BLOB_GENERATION.as_secs()).unwrap_or(i64::MAX)).ignore();
        self.query::<()>("noting a file that was hashed", &pipe).await
    }

    async fn forget_blob(&self, home: &Home, blob: &Digest) -> Result<()> {
        let tried = format!("forgetting a blob of {home}");
        let generation = self.generation(&tried).await?;
        let (key, field) = self.place_of(home.end(), blob, generation);
        let (before, _) = self.place_of(home.end(), blob, generation - 1);
        let call = Call::on(key).key(before).bytes(field).arg(home.path());
        self.script::<i64>(&tried, &self.0.scripts.blobs_forget, call).await.map(drop)
    }

    async fn learn_proofs(&self, proofs: &[Proof]) -> Result<()> {
        if proofs.is_empty() {
            return Ok(());
        }
        let tried = "remembering what sources hold";
        let hour = proof_hour(self.now(tried).await? / 1000);
        let mut pipe = redis::pipe();
        for proof in proofs {
            let name = self.proof_name(proof);
            let key = self.proofs_of(&name, hour, 0);
            pipe.hset(&key, name, hour).ignore();
            pipe.expire(&key, i64::try_from(2 * PROOF_TTL.as_secs()).unwrap_or(i64::MAX)).ignore();
        }
        self.query::<()>(tried, &pipe).await
    }

    async fn proofs(&self, proofs: &[Proof]) -> Result<Vec<bool>> {
        if proofs.is_empty() {
            return Ok(Vec::new());
        }
        let tried = "looking for what sources hold";
        let hour = proof_hour(self.now(tried).await? / 1000);
        let mut pipe = redis::pipe();
        for proof in proofs {
            let name = self.proof_name(proof);
            for back in [0, 1] {
                pipe.hget(self.proofs_of(&name, hour, back), &name);
            }
        }
        let found: Vec<Option<i64>> = self.query(tried, &pipe).await?;
        let is_believed = |given: &Option<i64>| given.is_some_and(|given| is_proof_believed(given, hour));
        Ok(found.chunks(2).map(|both| both.iter().any(is_believed)).collect())
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

    /// Returns the key of a proof given in this hour, or this many generations earlier.
    fn proofs_of(&self, name: &[u8], hour: i64, back: i64) -> String {
        let length = i64::try_from(PROOF_TTL.as_secs()).unwrap_or(i64::MAX);
        let generation = hour / proof_hour(length) - back;
        self.key(&format!("bp:{generation}:{}", &hex::encode(name)[..3]))
    }
}
