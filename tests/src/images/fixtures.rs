//! Ready-made images for most tests.

use super::{Layer, TestImage, media};

/// An OCI image with two gzipped tar layers and one platform.
pub fn single(name: &str) -> TestImage {
    TestImage::single(name).layers(2, 4096).build()
}

/// A Docker schema 2 image with two gzipped tar layers and one platform.
pub fn single_docker(name: &str) -> TestImage {
    TestImage::single(name).docker().layers(2, 4096).build()
}

/// An OCI index of linux/amd64 and linux/arm64.
pub fn multi_platform(name: &str) -> TestImage {
    let child = |platform| TestImage::single(name).platform(platform).layers(2, 4096).build();
    let index = TestImage::index(name).child(&child("linux/amd64"), "linux/amd64");
    index.child(&child("linux/arm64"), "linux/arm64").build()
}

/// An index that contains another index and an image.
pub fn nested(name: &str) -> TestImage {
    let inner = multi_platform(&format!("{name}/inner"));
    let outer = single(&format!("{name}/outer"));
    TestImage::index(name).bare_child(&inner).child(&outer, "linux/amd64").build()
}

/// An index with the same child for two platforms.
pub fn shared_child(name: &str) -> TestImage {
    let child = single(&format!("{name}/child"));
    TestImage::index(name).child(&child, "linux/amd64").child(&child, "linux/arm64").build()
}

/// An index whose two children share a layer.
pub fn shared_layers(name: &str) -> TestImage {
    let child = |platform| {
        let base = Layer::Shared(format!("{name}/base"), 8192);
        TestImage::single(name).platform(platform).layer(base).layers(1, 4096).build()
    };
    let index = TestImage::index(name).child(&child("linux/amd64"), "linux/amd64");
    index.child(&child("linux/arm64"), "linux/arm64").build()
}

/// An OCI artifact: the empty config, an `artifactType`, two layers that are not tars.
pub fn artifact(name: &str) -> TestImage {
    let artifact = TestImage::single(name).artifact("application/vnd.example.thing.v1").layer_type("text/plain");
    artifact.layer(Layer::Synthetic(1000)).layer(Layer::Synthetic(2000)).build()
}

/// A referrer of another image.
pub fn referrer(name: &str, subject: &TestImage) -> TestImage {
    let artifact = TestImage::single(name).artifact("application/vnd.example.signature.v1").layer_type("text/plain");
    artifact.layer(Layer::Synthetic(300)).subject(subject).build()
}

/// An image as cosign stores it under a tag: its layers are payloads.
pub fn cosign(name: &str) -> TestImage {
    let signature = TestImage::single(name).layer_type("application/vnd.dev.cosign.simplesigning.v1+json");
    signature.layer(Layer::Synthetic(240)).build()
}

/// A manifest with the config of a Helm chart.
pub fn helm_chart(name: &str) -> TestImage {
    let chart =
        TestImage::single(name).config("application/vnd.cncf.helm.config.v1+json", format!(r#"{{"name":"{name}"}}"#));
    chart.layer_type("application/vnd.cncf.helm.chart.content.v1.tar+gzip").layers(1, 2048).build()
}

/// An image with the same layer twice.
pub fn layer_twice(name: &str) -> TestImage {
    let layer = || Layer::Shared(format!("{name}/layer"), 4096);
    TestImage::single(name).layer(layer()).layers(1, 1024).layer(layer()).build()
}

/// An image with sha512 blob digests.
pub fn sha512_blobs(name: &str) -> TestImage {
    TestImage::single(name).sha512().layers(2, 4096).build()
}

/// An image with `data` in its descriptors.
pub fn inline_data(name: &str) -> TestImage {
    TestImage::single(name).inline_data().layers(2, 512).build()
}

/// An artifact with an empty layer.
pub fn empty_layer(name: &str) -> TestImage {
    let artifact = TestImage::single(name).artifact("application/vnd.example.empty.v1").layer_type("text/plain");
    artifact.layer(Layer::Empty).layer(Layer::Synthetic(100)).build()
}

/// A Docker image with a layer at a URL.
pub fn foreign_layer(name: &str, url: &str) -> TestImage {
    TestImage::single(name).docker().layer(Layer::Foreign(url.to_owned(), 2048)).layers(1, 1024).build()
}

/// An image with one layer of `size` bytes that takes no memory.
pub fn big(name: &str, size: u64) -> TestImage {
    TestImage::single(name).layer_type(media::OCI_LAYER).layer(Layer::Synthetic(size)).build()
}
