//! [`BlobIndex`] in Redis: per target and generation 4,096 hashes, from digest prefix to repository; and per generation
//! 4,096 more, from proof to the hour it was given.

use async_trait::async_trait;

use super::{RedisStore, ScriptCall};
use crate::{BLOB_GENERATION, BlobIndex, BlobProof, HashedFile, PROOF_TTL, is_proof_valid, proof_hour};
use imgsync_model::batch::{Endpoint, RepositoryLocator};
use imgsync_oci::Digest;
use imgsync_oci::error::Result;

/// Bytes of a digest that distinguish blobs.
const DIGEST_PREFIX_BYTES: usize = 20;

#[async_trait]
impl BlobIndex for RedisStore {
    async fn find_blobs(&self, end: &Endpoint, blobs: &[Digest]) -> Result<Vec<Option<RepositoryLocator>>> {
        if blobs.is_empty() {
            return Ok(Vec::new());
        }
        let operation = format!("finding blobs at {end}");
        let generation = self.generation(&operation).await?;
        let mut pipe = redis::pipe();
        for blob in blobs {
            for generation in [generation, generation - 1] {
                let (key, field) = self.blob_key(end, blob, generation);
                pipe.hget(key, field);
            }
        }
        let found: Vec<Option<String>> = self.query(&operation, &pipe).await?;
        let home =
            |path: &Option<String>| path.as_deref().and_then(|path| RepositoryLocator::new(end.clone(), path).ok());
        Ok(found.chunks(2).map(|both| both.iter().find_map(home)).collect())
    }

    async fn record_blobs(&self, home: &RepositoryLocator, blobs: &[Digest]) -> Result<()> {
        if blobs.is_empty() {
            return Ok(());
        }
        let operation = format!("recording blobs of {home}");
        let generation = self.generation(&operation).await?;
        let mut pipe = redis::pipe();
        for blob in blobs {
            let (key, field) = self.blob_key(home.endpoint(), blob, generation);
            pipe.hset(&key, field, home.path()).ignore();
            pipe.expire(&key, i64::try_from(2 * BLOB_GENERATION.as_secs()).unwrap_or(i64::MAX)).ignore();
        }
        self.query::<()>(&operation, &pipe).await
    }

    async fn is_hashed_file(&self, file: &HashedFile) -> Result<bool> {
        let mut pipe = redis::pipe();
        pipe.hget(self.key(&format!("hashed_file:{}", file.folder)), file.digest.to_string());
        let (known,): (Option<String>,) = self.query("looking up a hashed file", &pipe).await?;
        Ok(known.is_some_and(|version| version == file.version))
    }

    async fn record_hashed_file(&self, file: &HashedFile) -> Result<()> {
        let key = self.key(&format!("hashed_file:{}", file.folder));
        let mut pipe = redis::pipe();
        pipe.hset(&key, file.digest.to_string(), &file.version).ignore();
        pipe.expire(&key, i64::try_from(2 * BLOB_GENERATION.as_secs()).unwrap_or(i64::MAX)).ignore();
        self.query::<()>("recording a hashed file", &pipe).await
    }

    async fn forget_blob(&self, home: &RepositoryLocator, blob: &Digest) -> Result<()> {
        let operation = format!("deleting a blob location of {home}");
        let generation = self.generation(&operation).await?;
        let (key, field) = self.blob_key(home.endpoint(), blob, generation);
        let (before, _) = self.blob_key(home.endpoint(), blob, generation - 1);
        let call = ScriptCall::new(key).key(before).bytes(field).arg(home.path());
        self.run_script::<i64>(&operation, &self.0.scripts.forget_blob, call).await.map(drop)
    }

    async fn record_proofs(&self, proofs: &[BlobProof]) -> Result<()> {
        if proofs.is_empty() {
            return Ok(());
        }
        let operation = "recording blob proofs";
        let hour = proof_hour(self.now(operation).await? / 1000);
        let mut pipe = redis::pipe();
        for proof in proofs {
            let name = self.proof_name(proof);
            let key = self.proof_key(&name, hour, 0);
            pipe.hset(&key, name, hour).ignore();
            pipe.expire(&key, i64::try_from(2 * PROOF_TTL.as_secs()).unwrap_or(i64::MAX)).ignore();
        }
        self.query::<()>(operation, &pipe).await
    }

    async fn check_proofs(&self, proofs: &[BlobProof]) -> Result<Vec<bool>> {
        if proofs.is_empty() {
            return Ok(Vec::new());
        }
        let operation = "reading blob proofs";
        let hour = proof_hour(self.now(operation).await? / 1000);
        let mut pipe = redis::pipe();
        for proof in proofs {
            let name = self.proof_name(proof);
            for back in [0, 1] {
                pipe.hget(self.proof_key(&name, hour, back), &name);
            }
        }
        let found: Vec<Option<i64>> = self.query(operation, &pipe).await?;
        let is_valid = |given: &Option<i64>| given.is_some_and(|given| is_proof_valid(given, hour));
        Ok(found.chunks(2).map(|both| both.iter().any(is_valid)).collect())
    }
}

impl RedisStore {
    async fn generation(&self, operation: &str) -> Result<i64> {
        let length = i64::try_from(BLOB_GENERATION.as_millis()).unwrap_or(i64::MAX);
        Ok(self.now(operation).await? / length)
    }

    fn blob_key(&self, end: &Endpoint, blob: &Digest, generation: i64) -> (String, Vec<u8>) {
        let key = self.key(&format!("blob:{end}:{generation}:{}", &blob.hex()[..3]));
        (key, hex::decode(&blob.hex()[..DIGEST_PREFIX_BYTES * 2]).unwrap_or_default())
    }

    /// Returns the key of a proof given in this hour, or this many generations earlier.
    fn proof_key(&self, name: &[u8], hour: i64, back: i64) -> String {
        let length = i64::try_from(PROOF_TTL.as_secs()).unwrap_or(i64::MAX);
        let generation = hour / proof_hour(length) - back;
        self.key(&format!("proof:{generation}:{}", &hex::encode(name)[..3]))
    }
}
