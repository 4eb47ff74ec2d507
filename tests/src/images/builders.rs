//! Builders of images and indexes.

use std::collections::BTreeMap;
use std::io::Write as _;

use base64::Engine as _;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Map, Value, json};

use super::blob::{seed_from_name, sha256};
use super::{Blob, Synthetic, TestImage, TestManifest, media};

/// Specification of a layer.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A gzipped tar with one file of about this many random bytes.
    File(u64),
    /// A gzipped tar seeded by its own name, so that several images can share it.
    Shared(String, u64),
    /// Meaningless bytes, generated while reading.
    Synthetic(u64),
    /// An empty layer.
    Empty,
    /// Content given by the test.
    Blob(Blob),
    /// A layer that is fetched from a URL instead of the registry.
    Foreign(String, u64),
}

/// Builder of a single manifest: an image of one platform, or an artifact.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    name: String,
    docker: bool,
    platform: String,
    layers: Vec<Layer>,
    config: Option<(String, Bytes)>,
    artifact_type: Option<String>,
    layer_type: Option<String>,
    subject: Option<Value>,
    annotations: BTreeMap<String, String>,
    inline: bool,
    sha512: bool,
    no_config: bool,
}

impl ImageBuilder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            docker: false,
            platform: "linux/amd64".to_owned(),
            layers: Vec::new(),
            config: None,
            artifact_type: None,
            layer_type: None,
            subject: None,
            annotations: BTreeMap::new(),
            inline: false,
            sha512: false,
            no_config: false,
        }
    }

    /// Omits the config and puts layers into `blobs`: the short-lived OCI artifact manifest.
    #[must_use]
    pub fn without_config(mut self) -> Self {
        self.no_config = true;
        self
    }

    /// Uses media types of Docker schema 2 instead of OCI.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Sets the platform of the config, `os/architecture` or `os/architecture/variant`.
    #[must_use]
    pub fn platform(mut self, platform: &str) -> Self {
        self.platform = platform.to_owned();
        self
    }

    /// Adds a layer.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Adds gzipped tar layers of about `size` bytes each.
    #[must_use]
    pub fn layers(mut self, count: usize, size: u64) -> Self {
        self.layers.extend(std::iter::repeat_n(Layer::File(size), count));
        self
    }

    /// Replaces the image config.
    #[must_use]
    pub fn config(mut self, media_type: &str, bytes: impl Into<Bytes>) -> Self {
        self.config = Some((media_type.to_owned(), bytes.into()));
        self
    }

    /// Sets `artifactType`, with the empty config unless another is set.
    #[must_use]
    pub fn artifact(mut self, artifact_type: &str) -> Self {
        self.artifact_type = Some(artifact_type.to_owned());
        self.config.get_or_insert_with(|| (media::OCI_EMPTY.to_owned(), Bytes::from_static(b"{}")));
        self
    }

    /// Sets the media type of the layers.
    #[must_use]
    pub fn layer_type(mut self, media_type: &str) -> Self {
        self.layer_type = Some(media_type.to_owned());
        self
    }

    /// Makes it a referrer of another image.
    #[must_use]
    pub fn subject(mut self, image: &TestImage) -> Self {
        self.subject = Some(image.descriptor());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Embeds content of at most 4 KiB in the `data` of descriptors.
    #[must_use]
    pub fn inline_data(mut self) -> Self {
        self.inline = true;
        self
    }

    /// Uses sha512 digests for blobs.
    #[must_use]
    pub fn sha512(mut self) -> Self {
        self.sha512 = true;
        self
    }

    /// Builds the image.
    pub fn build(self) -> TestImage {
        let mut blobs = BTreeMap::new();
        let mut foreign = BTreeMap::new();
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let (blob, diff_id) = self.content(number, layer);
            let mut descriptor = self.descriptor(self.layer_media_type(layer), &blob);
            let digest = descriptor["digest"].as_str().expect("a descriptor has a digest").to_owned();
            if let Layer::Foreign(url, _) = layer {
                descriptor["urls"] = json!([url]);
                foreign.insert(digest, blob);
            } else {
                blobs.insert(digest, blob);
            }
            layers.push(descriptor);
            diff_ids.push(diff_id);
        }

        let (config_type, config) = match &self.config {
            Some((media_type, bytes)) => (media_type.as_str(), bytes.clone()),
            None => (self.pick(media::DOCKER_CONFIG, media::OCI_CONFIG), self.image_config(&diff_ids)),
        };
        let config = Blob::Bytes(config);
        let config_descriptor = self.descriptor(config_type, &config);
        if !self.no_config {
            blobs.insert(config_descriptor["digest"].as_str().expect("a descriptor has a digest").to_owned(), config);
        }

        let mut manifest = Map::new();
        let media_type = match self.no_config {
            true => media::OCI_ARTIFACT,
            false => self.pick(media::DOCKER_MANIFEST, media::OCI_MANIFEST),
        };
        if !self.no_config {
            manifest.insert("schemaVersion".into(), json!(2));
        }
        manifest.insert("mediaType".into(), json!(media_type));
        if let Some(artifact_type) = &self.artifact_type {
            manifest.insert("artifactType".into(), json!(artifact_type));
        }
        if self.no_config {
            manifest.insert("blobs".into(), json!(layers));
        } else {
            manifest.insert("config".into(), config_descriptor);
            manifest.insert("layers".into(), json!(layers));
        }
        if let Some(subject) = &self.subject {
            manifest.insert("subject".into(), subject.clone());
        }
        if !self.annotations.is_empty() {
            manifest.insert("annotations".into(), json!(self.annotations));
        }
        let mut image = finish(&self.name, media_type, &Value::Object(manifest));
        image.blobs = blobs;
        image.foreign = foreign;
        image
    }

    fn pick<'a>(&self, docker: &'a str, oci: &'a str) -> &'a str {
        if self.docker { docker } else { oci }
    }

    fn layer_media_type(&self, layer: &Layer) -> &str {
        match (layer, &self.layer_type) {
            (Layer::Foreign(..), _) => self.pick(media::DOCKER_FOREIGN, media::OCI_FOREIGN),
            (_, Some(media_type)) => media_type,
            _ => self.pick(media::DOCKER_LAYER, media::OCI_LAYER),
        }
    }

    /// Builds the content of a layer and returns it with its diff id.
    fn content(&self, number: usize, layer: &Layer) -> (Blob, String) {
        let name = format!("{}/{}/layer-{number}", self.name, self.platform);
        let bare = |blob: Blob| {
            let digest = blob.sha256();
            (blob, digest)
        };
        match layer {
            Layer::File(size) => tarball(&name, *size),
            Layer::Shared(name, size) => tarball(name, *size),
            Layer::Foreign(_, size) => tarball(&name, *size),
            Layer::Synthetic(size) => bare(Blob::synthetic(&name, *size)),
            Layer::Empty => bare(Blob::Bytes(Bytes::new())),
            Layer::Blob(blob) => bare(blob.clone()),
        }
    }

    fn descriptor(&self, media_type: &str, blob: &Blob) -> Value {
        let digest = if self.sha512 { blob.sha512() } else { blob.sha256() };
        let mut descriptor = json!({"mediaType": media_type, "size": blob.size(), "digest": digest});
        if self.inline && blob.size() <= 4096 {
            let bytes = blob.read(0..blob.size());
            descriptor["data"] = json!(base64::engine::general_purpose::STANDARD.encode(bytes));
        }
        descriptor
    }

    fn image_config(&self, diff_ids: &[String]) -> Bytes {
        let mut platform = self.platform.splitn(3, '/');
        let os = platform.next().unwrap_or("linux");
        let architecture = platform.next().unwrap_or("amd64");
        let history =
            |number| json!({"created": "2024-01-01T00:00:00Z", "created_by": format!("COPY file-{number} /")});
        let mut config = json!({
            "created": "2024-01-01T00:00:00Z",
            "architecture": architecture,
            "os": os,
            "config": {"Env": ["PATH=/bin"], "Labels": {"test": self.name}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": (0..diff_ids.len()).map(history).collect::<Vec<_>>(),
        });
        if let Some(variant) = platform.next() {
            config["variant"] = json!(variant);
        }
        config.to_string().into()
    }
}

/// Builder of an index.
#[derive(Clone, Debug)]
pub struct IndexBuilder {
    name: String,
    docker: bool,
    entries: Vec<Value>,
    children: Vec<TestImage>,
    blobs: BTreeMap<String, Blob>,
    annotations: BTreeMap<String, String>,
    artifact_type: Option<String>,
    subject: Option<Value>,
}

impl IndexBuilder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            docker: false,
            entries: Vec::new(),
            children: Vec::new(),
            blobs: BTreeMap::new(),
            annotations: BTreeMap::new(),
            artifact_type: None,
            subject: None,
        }
    }

    /// Builds a Docker manifest list instead of an OCI index.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Adds a child for a platform, `os/architecture` or `os/architecture/variant`.
    #[must_use]
    pub fn child(mut self, image: &TestImage, platform: &str) -> Self {
        let mut parts = platform.splitn(3, '/');
        let mut described = json!({"os": parts.next(), "architecture": parts.next()});
        if let Some(variant) = parts.next() {
            described["variant"] = json!(variant);
        }
        let mut entry = image.descriptor();
        entry["platform"] = described;
        self.entries.push(entry);
        self.children.push(image.clone());
        self
    }

    /// Adds a child without a platform: another index, an artifact.
    #[must_use]
    pub fn bare_child(mut self, image: &TestImage) -> Self {
        self.entries.push(image.descriptor());
        self.children.push(image.clone());
        self
    }

    /// Adds an attestation in BuildKit's form: platform `unknown/unknown`, and annotations that name its image.
    #[must_use]
    pub fn attestation(mut self, image: &TestImage, of: &TestImage) -> Self {
        self = self.child(image, "unknown/unknown");
        self.entries.last_mut().expect("it was just added")["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": of.root,
        });
        self
    }

    /// Adds a blob as an entry, as build caches do.
    #[must_use]
    pub fn blob(mut self, media_type: &str, blob: Blob) -> Self {
        let digest = blob.sha256();
        self.entries.push(json!({"mediaType": media_type, "digest": digest, "size": blob.size()}));
        self.blobs.insert(digest, blob);
        self
    }

    /// Adds an annotation to the last added entry.
    ///
    /// # Panics
    /// If there is no entry yet.
    #[must_use]
    pub fn listed_with(mut self, key: &str, value: &str) -> Self {
        self.entries.last_mut().expect("there is an entry")["annotations"][key] = json!(value);
        self
    }

    /// Sets the media type of the last added entry, or removes it with `None`.
    ///
    /// # Panics
    /// If there is no entry yet.
    #[must_use]
    pub fn listed_as(mut self, media_type: Option<&str>) -> Self {
        let entry = self.entries.last_mut().and_then(Value::as_object_mut).expect("there is an entry");
        match media_type {
            Some(media_type) => _ = entry.insert("mediaType".to_owned(), json!(media_type)),
            None => _ = entry.remove("mediaType"),
        }
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets `artifactType`.
    #[must_use]
    pub fn artifact(mut self, artifact_type: &str) -> Self {
        self.artifact_type = Some(artifact_type.to_owned());
        self
    }

    /// Makes it a referrer of another image.
    #[must_use]
    pub fn subject(mut self, image: &TestImage) -> Self {
        self.subject = Some(image.descriptor());
        self
    }

    /// Builds the image.
    pub fn build(self) -> TestImage {
        let media_type = if self.docker { media::DOCKER_LIST } else { media::OCI_INDEX };
        let mut index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": self.entries});
        if let Some(artifact_type) = &self.artifact_type {
            index["artifactType"] = json!(artifact_type);
        }
        if let Some(subject) = &self.subject {
            index["subject"] = subject.clone();
        }
        if !self.annotations.is_empty() {
            index["annotations"] = json!(self.annotations);
        }
        let mut image = finish(&self.name, media_type, &index);
        image.blobs = self.blobs;
        for child in self.children {
            image.manifests.extend(child.manifests);
            image.blobs.extend(child.blobs);
            image.foreign.extend(child.foreign);
        }
        image
    }
}

/// Indents the JSON, as many tools do: parsing and re-serializing a manifest then changes its digest.
pub(super) fn finish(name: &str, media_type: &str, manifest: &Value) -> TestImage {
    let bytes = Bytes::from(format!("{manifest:#}\n"));
    let root = sha256(&bytes);
    let manifest = TestManifest { media_type: media_type.to_owned(), bytes };
    TestImage {
        name: name.to_owned(),
        manifests: BTreeMap::from([(root.clone(), manifest)]),
        root,
        blobs: BTreeMap::new(),
        foreign: BTreeMap::new(),
    }
}

/// Builds indexes of indexes, `levels` deep and `width` wide: each lists all of the level below, the lowest these images.
/// There are few manifests, and `width` to the power of `levels` ways to them.
pub fn nested_indexes(name: &str, levels: usize, width: usize, images: &[TestImage]) -> TestImage {
    let mut below = images.to_vec();
    for level in 0..levels {
        let index = |number: usize| {
            let index = TestImage::index(&format!("{name}-{level}-{number}"));
            let index = index.annotation("number", &number.to_string());
            below.iter().fold(index, IndexBuilder::bare_child).build()
        };
        below = (0..width).map(index).collect();
    }
    below.iter().fold(TestImage::index(name), IndexBuilder::bare_child).build()
}

/// Builds a gzipped tar with one file of `size` bytes seeded by the name. Returns it with the digest of the tar.
pub fn tarball(name: &str, size: u64) -> (Blob, String) {
    let content = Blob::Synthetic(Synthetic::new(seed_from_name(name), size)).read(0..size);
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(1_704_067_200);
    let mut archive = tar::Builder::new(Vec::new());
    let path = format!("data/{:016x}", seed_from_name(name));
    archive.append_data(&mut header, path, &content[..]).expect("a tar in memory takes a file");
    let archive = archive.into_inner().expect("a tar in memory ends");
    let diff_id = sha256(&archive);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&archive).expect("memory takes bytes");
    (Blob::from(gzip.finish().expect("memory takes bytes")), diff_id)
}
