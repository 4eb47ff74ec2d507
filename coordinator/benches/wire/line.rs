//! 20 rules of one repository each, 200 tags, over lines with a round trip of 50 ms to both registries.

use std::time::Duration;

use crate::images::{known_repositories, one_rule_each, push_small_images, repositories, small_image};
use crate::measure::{Aims, MeasuredRun, Row, Servers};
use crate::server::{self, CountingServer};
use crate::small_images::count_spot_checks;
use crate::work_list::WorkList;

const REPOSITORIES: usize = 20;
const TAGS: usize = 10;
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// Starts two docker-registry servers behind lines, the source filled.
async fn start() -> Servers {
    let servers = Servers::new(
        CountingServer::docker().await.behind_line().await,
        CountingServer::docker().await.behind_line().await,
    );
    push_small_images(&servers, REPOSITORIES, TAGS).await;
    servers
}

/// Copies everything to an empty target.
pub(crate) async fn cold(pairs: usize) -> Row {
    let aims = Aims { wall: Some(6.0), ..Aims::default() };
    let servers = start().await;
    servers.source.set_round_trip(ROUND_TRIP);
    let new_target = async || {
        let target = CountingServer::docker().await.behind_line().await;
        target.set_round_trip(ROUND_TRIP);
        servers.with_target(target)
    };
    let image = small_image(0, 0);
    let imgsync = async || {
        let servers = new_target().await;
        let program = server::imgsync(&one_rule_each(&servers, REPOSITORIES));
        let run = MeasuredRun::imgsync(server::next_run(&program), &servers).expecting("copied", REPOSITORIES * TAGS);
        run.resulting("m/r0", "v0", &image)
    };
    let floor = async || {
        let servers = new_target().await;
        let work = WorkList::new(&servers, repositories(REPOSITORIES));
        MeasuredRun::floor(&work, &servers).resulting("m/r0", "v0", &image)
    };
    // Without skopeo, which copies one image after the other: five minutes.
    Row::measure("200 tags, 50 ms away, cold", aims, pairs, imgsync, floor).await
}

/// Compares everything.
pub(crate) async fn unchanged(pairs: usize) -> Row {
    let aims = Aims { wall: Some(0.6), ..Aims::default() };
    let servers = start().await;
    let program = server::imgsync(&one_rule_each(&servers, REPOSITORIES));
    server::next_run(&program).run().await.assert_code(0);
    let spot_checks = count_spot_checks(&program, &servers).await;
    servers.source.set_round_trip(ROUND_TRIP);
    servers.target.set_round_trip(ROUND_TRIP);
    let imgsync =
        async || MeasuredRun::imgsync(server::next_run(&program), &servers).expecting("unchanged", REPOSITORIES * TAGS);
    let work = WorkList::new(&servers, known_repositories(REPOSITORIES, TAGS, spot_checks));
    let floor = async || MeasuredRun::floor(&work, &servers);
    Row::measure("200 tags, 50 ms away, unchanged", aims, pairs, imgsync, floor).await
}
