//! Lists the tags of a repository, then copies one image from registry to registry.
//!
//! `cargo run -p imgsync-registry --example copy_image -- gcr.io/distroless/static:nonroot localhost:5000/static:nonroot`
//!
//! Credentials are those that `docker login` left. Children are pushed before their parents, and the tag last.
#![allow(clippy::print_stdout, reason = "an example prints what it does")]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::{Descriptor, Manifest, Reference};
use imgsync_registry::credentials::CredentialEnvironment;
use imgsync_registry::{
    Access, Client, ClientSettings, Context, ManifestRef, Repository, StartedUpload, TrafficCounters, UploadBody,
};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<Reference> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let [source, target] = &arguments[..] else {
        println!("usage: copy_image SOURCE TARGET (two references, such as gcr.io/distroless/static:nonroot)");
        return Ok(());
    };
    let client = Client::new(ClientSettings::default(), CredentialEnvironment::from_process());
    let (pulled, pushed) = (TrafficCounters::new(), TrafficCounters::new());
    let from = open(&client, source, Access::Pull, &pulled)?;
    let to = open(&client, target, Access::Push, &pushed)?;

    let mut pages = from.list_tags();
    let mut tags = 0;
    while let Some(page) = pages.next_page().await? {
        tags += page.tags.len();
    }
    println!("{} has {tags} tags", source.name());

    copy_manifest(&from, &to, reference(source)?, reference(target)?).await?;
    println!("pulled with {:?}", pulled.snapshot());
    println!("pushed with {:?}", pushed.snapshot());
    Ok(())
}

fn open(client: &Client, image: &Reference, access: Access, counters: &Arc<TrafficCounters>) -> Result<Repository> {
    client.repository(&image.registry, &image.repository, access, &Context::default(), counters)
}

fn reference(image: &Reference) -> Result<ManifestRef> {
    let tag = image.tag_or_latest().map(ManifestRef::Tag).or(image.digest.clone().map(ManifestRef::Digest));
    tag.ok_or_else(|| Error::new(ErrorKind::Invalid, format!("reading {image}"), "it has neither tag nor digest"))
}

/// Copies a manifest and all that it lists.
fn copy_manifest<'a>(
    from: &'a Repository,
    to: &'a Repository,
    read: ManifestRef,
    write: ManifestRef,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let manifest: Manifest = from.get_manifest(&read).await?;
        for child in manifest.children() {
            let digest = ManifestRef::Digest(child.digest.clone());
            copy_manifest(from, to, digest.clone(), digest).await?;
        }
        for blob in manifest.blobs() {
            copy_blob(from, to, blob).await?;
        }
        to.put_manifest(&write, &manifest).await?;
        println!("put {write}");
        Ok(())
    })
}

/// Copies a blob through memory. A program for large images streams it: see `UploadBody::Stream`.
async fn copy_blob(from: &Repository, to: &Repository, blob: &Descriptor) -> Result<()> {
    let StartedUpload::Session(mut session) = to.start_upload(&blob.digest, None).await? else { return Ok(()) };
    let mut content = BytesMut::new();
    let mut stream = from.open_blob(blob, 0).await?.stream;
    while let Some(chunk) = stream.next_chunk().await? {
        content.extend_from_slice(&chunk);
    }
    let content: Bytes = content.freeze();
    to.send_upload(&mut session, UploadBody::Whole(content)).await
}
