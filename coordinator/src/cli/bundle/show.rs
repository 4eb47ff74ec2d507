//! `imgsync bundle verify`, `list` and `diff`.

use std::collections::{BTreeMap, HashSet};
use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use clap::Args;
use imgsync_bundle::{BundleHeader, BundleImages, BundleIndex, ContentSize, MAX_INDEX_BYTES, StreamedContents};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::{Descriptor, Digest, Hasher, MediaType};
use serde_json::json;

use super::super::exit::{Exit, fail};
use super::super::printer::Printer;
use super::create::{HEAD_BYTES, read_head};
use super::{OPENING, STDIN, is_stdin, open_bundle, open_input, open_stream, read_file};

/// `imgsync bundle verify`.
#[derive(Debug, Args)]
pub(crate) struct BundleVerifyArgs {
    /// The bundle: its folder, its list of parts (FILE.json), one of its parts, or its file; then other folders with parts;
    /// - is stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Demand a signature by the key of this public key (PEM)
    #[arg(long, value_name = "FILE", visible_alias = "verify-key")]
    public_key: Option<PathBuf>,
}

/// `imgsync bundle list`.
#[derive(Debug, Args)]
pub(crate) struct BundleListArgs {
    /// The bundle, or its index; - is stdin
    #[arg(value_name = "BUNDLE", required = true)]
    bundle: Vec<PathBuf>,
    /// Demand a signature by the key of this public key (PEM)
    #[arg(long, value_name = "FILE", visible_alias = "verify-key")]
    public_key: Option<PathBuf>,
    /// Print each tag as a JSON object
    #[arg(long)]
    json: bool,
}

/// `imgsync bundle diff`.
#[derive(Debug, Args)]
pub(crate) struct BundleDiffArgs {
    /// The earlier bundle, or its index
    #[arg(value_name = "A")]
    before: PathBuf,
    /// The later bundle, or its index
    #[arg(value_name = "B")]
    after: PathBuf,
    /// Print each difference as a JSON object
    #[arg(long)]
    json: bool,
}

/// Checks all bytes of a bundle.
pub(super) async fn verify(args: &BundleVerifyArgs, printer: &Printer) -> Exit {
    match find_faults(args, printer).await {
        Ok(0) => Exit::Done,
        Ok(faults) => {
            let message = format!("the bundle is damaged: {}", pluralize(faults, "fault", "faults"));
            printer.error(&message, Some("carry the parts that are named over again"));
            Exit::Failed
        }
        Err(error) if matches!(error.kind(), ErrorKind::Insecure | ErrorKind::Local) => {
            printer.failure(&error);
            Exit::Failed
        }
        Err(error) => fail(&error, printer),
    }
}

async fn find_faults(args: &BundleVerifyArgs, printer: &Printer) -> Result<u64> {
    if is_stdin(&args.bundle)? {
        return find_streamed_faults(args, printer);
    }
    let bundle = open_bundle(&args.bundle, args.public_key.as_ref(), printer)?;
    let mut faults = 0;
    for damage in tokio::task::block_in_place(|| bundle.reader.find_damage(|_| {})) {
        printer.line(&format!("damaged: {}: {}", damage.path.display(), damage.detail));
        faults += 1;
    }
    let images = BundleImages::open(&bundle, None).await?;
    let contents = bundle.index.repositories.iter().flat_map(|entry| entry.manifests.iter().chain(&entry.blobs));
    let (mut checked, mut bytes) = (HashSet::new(), 0);
    for content in contents {
        if !checked.insert(&content.digest) {
            continue;
        }
        bytes = u64::saturating_add(bytes, content.size);
        let detail = match hash_content(&images, content).await {
            Ok(found) if found == content.digest => continue,
            Ok(found) => format!("its content has the digest {found}"),
            Err(error) => error.message().to_owned(),
        };
        printer.line(&format!("damaged: {}: {detail}", content.digest));
        faults += 1;
    }
    print_verified(&bundle.index.header, bundle.reader.label(), (checked.len() as u64, bytes, faults), printer);
    Ok(faults)
}

/// Checks a bundle while it comes out of stdin.
fn find_streamed_faults(args: &BundleVerifyArgs, printer: &Printer) -> Result<u64> {
    let bundle = open_stream(open_input()?, args.public_key.as_ref(), printer)?;
    let header = bundle.index.header.clone();
    let verify = || bundle.verify_contents(|fault| printer.line(&format!("damaged: {fault}")));
    let StreamedContents { contents, bytes, faults } = tokio::task::block_in_place(verify)?;
    print_verified(&header, STDIN, (contents, bytes, faults), printer);
    Ok(faults)
}

fn print_verified(header: &BundleHeader, label: &str, (contents, bytes, faults): (u64, u64, u64), printer: &Printer) {
    if let Some(missing) = header.describe_missing() {
        printer.warning(&format!("the bundle is incomplete: {missing}"));
    }
    if faults == 0 {
        let contents = pluralize(contents, "content", "contents");
        printer.line(&format!("{label}: {contents} verified ({})", ByteSize(bytes)));
    }
}

async fn hash_content(images: &BundleImages, content: &ContentSize) -> Result<Digest> {
    let blob = Descriptor::new(MediaType::Missing, content.digest.clone(), content.size);
    let mut stream = images.layout().open_blob(&blob, 0).await?.stream;
    let mut hasher = Hasher::new(content.digest.algorithm());
    while let Some(chunk) = stream.next_chunk().await? {
        hasher.update(&chunk);
    }
    Ok(hasher.finish())
}

/// Lists the tags of a bundle.
pub(super) fn list(args: &BundleListArgs, printer: &Printer) -> Exit {
    let index = match &args.bundle[..] {
        paths if paths.iter().any(|path| path == Path::new(STDIN)) => list_stdin(args, printer),
        [path] if args.public_key.is_none() => read_index(path, printer),
        paths => open_bundle(paths, args.public_key.as_ref(), printer).map(|bundle| (*bundle.index).clone()),
    };
    let index = match index {
        Ok(index) => index,
        Err(error) => return fail(&error, printer),
    };
    for (repository, tag) in index.tags() {
        let source = BundleIndex::source_of(repository, tag).unwrap_or_default();
        let source = imgsync_oci::sanitize::sanitize_within(&source, 500);
        let written = match args.json {
            true => printer.data(
                &json!({
                    "repository": repository.path,
                    "tag": tag.tag,
                    "digest": tag.digest,
                    "carried": tag.is_carried,
                    "source": source,
                })
                .to_string(),
            ),
            false => {
                let place = if tag.is_carried { "carried" } else { "at the receiver" };
                printer.data(&format!("{}:{}\t{}\t{place}\t{source}", repository.path, tag.tag, tag.digest))
            }
        };
        if !written {
            return Exit::Done;
        }
    }
    let header = &index.header;
    let have = match header.have.is_empty() {
        true => String::new(),
        false => format!("; without what the receiver has: {}", header.have.join(", ")),
    };
    if let Some(missing) = header.describe_missing() {
        printer.warning(&format!("the bundle is incomplete: {missing}"));
    }
    let made = format!("`{}` made {} by imgsync {}{have}", header.title, header.created, header.imgsync);
    printer.line(&format!(
        "{}, {} in all; {}",
        pluralize(index.tags().count() as u64, "tag", "tags"),
        ByteSize(content_bytes(&index)),
        imgsync_oci::sanitize::sanitize_within(&made, 1000)
    ));
    Exit::Done
}

/// Reads the index of the bundle, or the index alone, that comes out of stdin.
fn list_stdin(args: &BundleListArgs, printer: &Printer) -> Result<BundleIndex> {
    is_stdin(&args.bundle)?;
    let mut input = open_input()?;
    let failed = |error: std::io::Error| Error::new(ErrorKind::Local, OPENING, error.to_string()).with_source(error);
    let mut head = Vec::new();
    tokio::task::block_in_place(|| input.by_ref().take(HEAD_BYTES).read_to_end(&mut head)).map_err(failed)?;
    let is_index = BundleIndex::is_index(&head);
    let mut input = Cursor::new(head).chain(input);
    if is_index && args.public_key.is_none() {
        let mut bytes = Vec::new();
        let mut limited = input.by_ref().take(MAX_INDEX_BYTES + 1);
        tokio::task::block_in_place(|| limited.read_to_end(&mut bytes)).map_err(failed)?;
        if bytes.len() as u64 > MAX_INDEX_BYTES {
            let detail = format!("the index has more than {MAX_INDEX_BYTES} bytes");
            return Err(Error::new(ErrorKind::Invalid, OPENING, detail));
        }
        return BundleIndex::decode(&bytes, STDIN);
    }
    let bundle = open_stream(Box::new(input), args.public_key.as_ref(), printer)?;
    let index = bundle.index.clone();
    tokio::task::block_in_place(|| bundle.skip_contents())?;
    Ok(index)
}

/// Compares the tags of two bundles.
pub(super) fn diff(args: &BundleDiffArgs, printer: &Printer) -> Exit {
    let read = |path| read_index(path, printer);
    let (before, after) = match (read(&args.before), read(&args.after)) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(error), _) | (_, Err(error)) => return fail(&error, printer),
    };
    let tags = |index: &BundleIndex| -> BTreeMap<(String, String), Digest> {
        let named = index
            .tags()
            .map(|(repository, tag)| ((repository.path.to_string(), tag.tag.to_string()), tag.digest.clone()));
        named.collect()
    };
    let (old, new) = (tags(&before), tags(&after));
    let (mut added, mut removed, mut changed) = (0_u64, 0_u64, 0_u64);
    let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (path, tag) = name;
        let (before, after) = (old.get(name), new.get(name));
        let (sign, text) = match (before, after) {
            (None, Some(after)) => {
                added += 1;
                ("+", after.to_string())
            }
            (Some(before), None) => {
                removed += 1;
                ("-", before.to_string())
            }
            (Some(before), Some(after)) if before != after => {
                changed += 1;
                ("~", format!("{before} -> {after}"))
            }
            _ => continue,
        };
        let written = match args.json {
            true => {
                printer.data(&json!({"repository": path, "tag": tag, "before": before, "after": after}).to_string())
            }
            false => printer.data(&format!("{sign} {path}:{tag} {text}")),
        };
        if !written {
            return Exit::Done;
        }
    }
    printer.line(&format!(
        "{} added, {} removed, {} changed; content {} -> {}",
        pluralize(added, "tag", "tags"),
        pluralize(removed, "tag", "tags"),
        pluralize(changed, "tag", "tags"),
        ByteSize(content_bytes(&before)),
        ByteSize(content_bytes(&after))
    ));
    Exit::Done
}

/// Reads the index of a bundle, from a file of its own or from the bundle.
fn read_index(path: &Path, printer: &Printer) -> Result<BundleIndex> {
    if BundleIndex::is_index(&read_head(path)) {
        let bytes = read_file(path, MAX_INDEX_BYTES)?;
        return BundleIndex::decode(&bytes, &path.display().to_string());
    }
    open_bundle(&[path.to_owned()], None, printer).map(|bundle| (*bundle.index).clone())
}

/// Returns the bytes of all content in a bundle.
fn content_bytes(index: &BundleIndex) -> u64 {
    let contents = index.repositories.iter().flat_map(|entry| entry.manifests.iter().chain(&entry.blobs));
    let mut seen = HashSet::new();
    contents.filter(|content| seen.insert(&content.digest)).fold(0, |bytes, content| bytes.saturating_add(content.size))
}
