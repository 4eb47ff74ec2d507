//! One image between two docker-registry servers: large layers, and many layers.

use imgsync_tests::images::{Layer, TestImage};

use crate::images::one_rule_each;
use crate::measure::{Aims, MeasuredRun, Row, Servers};
use crate::server::{self, CountingServer};
use crate::work_list::{RepositoryWork, WorkList};

const MIB: u64 = 1 << 20;

/// Copies 1.5 GB in six layers.
pub(crate) async fn large(pairs: usize) -> Row {
    let aims = Aims { cpu: Some(1.6), peak_mib: Some(18.0), ..Aims::default() };
    let image = (0..6).fold(TestImage::single("large"), |image, _| image.layer(Layer::Synthetic(250 * MIB))).build();
    let servers = Servers::docker().await;
    servers.source.push("r0", "v0", &image).await;
    let row = copy("1.5 GB in 6 layers, cold", aims, pairs, &servers, &image).await;
    let servers = servers.with_target(CountingServer::docker().await);
    row.with_skopeo(MeasuredRun::skopeo_sync(&servers, 1)).await
}

/// Copies images of 1, 10 and 100 layers of 100 kB.
pub(crate) async fn many(pairs: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for layers in [1, 10, 100] {
        let image = TestImage::single(&format!("layers-{layers}")).layers(layers, 100_000).build();
        let servers = Servers::docker().await;
        servers.source.push("r0", "v0", &image).await;
        let name = format!("1 image of {layers} layers of 100 kB, cold");
        rows.push(copy(&name, Aims::default(), pairs, &servers, &image).await);
    }
    rows
}

/// Copies an image to an empty target.
async fn copy(name: &str, aims: Aims, pairs: usize, servers: &Servers, image: &TestImage) -> Row {
    let imgsync = async || {
        let servers = servers.with_target(CountingServer::docker().await);
        let program = server::imgsync(&one_rule_each(&servers, 1));
        let run = MeasuredRun::imgsync(server::next_run(&program), &servers).expecting("copied", 1);
        run.resulting("m/r0", "v0", image)
    };
    let floor = async || {
        let servers = servers.with_target(CountingServer::docker().await);
        let work = WorkList::new(&servers, vec![RepositoryWork::listed("r0", "m/r0")]);
        MeasuredRun::floor(&work, &servers).resulting("m/r0", "v0", image)
    };
    Row::measure(name, aims, pairs, imgsync, floor).await
}
