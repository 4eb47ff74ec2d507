//! 400 tags of small images between two docker-registry servers: cold and unchanged, and one tag.

use crate::images::{known_repositories, one_rule_each, push_small_images, repositories, small_image};
use crate::measure::{Aims, MeasuredRun, Row, Servers};
use crate::server::{self, CountingServer};
use crate::work_list::{RepositoryWork, WorkList};

const REPOSITORIES: usize = 40;
const TAGS: usize = 10;
const ALL: usize = REPOSITORIES * TAGS;
/// Runs of a few milliseconds are repeated this often in each measurement.
const SHORT_RUNS: u32 = 10;

/// Starts two docker-registry servers, the source filled.
async fn start() -> Servers {
    let servers = Servers::docker().await;
    push_small_images(&servers, REPOSITORIES, TAGS).await;
    servers
}

/// Copies everything to an empty target.
pub(crate) async fn cold(pairs: usize) -> Row {
    let aims = Aims { wall_ratio: Some(1.1), cpu: Some(2.2), peak_mib: Some(24.0), ..Aims::default() };
    let servers = start().await;
    let row = copy_all("400 tags, cold", aims, pairs, &servers, 20).await;
    let servers = servers.with_target(CountingServer::docker().await);
    row.with_skopeo(MeasuredRun::skopeo_sync(&servers, REPOSITORIES).map(resulting_in_last_image)).await
}

/// Copies everything to an empty target with several numbers of slots.
pub(crate) async fn slots(pairs: usize) -> Vec<Row> {
    let servers = start().await;
    let mut rows = Vec::new();
    for slots in [1, 5, 20, 50, 100, 200] {
        let name = format!("400 tags, cold, {slots} slots");
        rows.push(copy_all(&name, Aims::default(), pairs, &servers, slots).await);
    }
    rows
}

async fn copy_all(name: &str, aims: Aims, pairs: usize, servers: &Servers, slots: usize) -> Row {
    // Each run has a target of its own.
    let imgsync = async || {
        let servers = servers.with_target(CountingServer::docker().await);
        let program = server::imgsync(&one_rule_each(&servers, REPOSITORIES));
        let program = server::next_run(&program).args(["--concurrency", &slots.to_string()]);
        resulting_in_last_image(MeasuredRun::imgsync(program, &servers).expecting("copied", ALL))
    };
    let floor = async || {
        let servers = servers.with_target(CountingServer::docker().await);
        let work = WorkList { slots, ..WorkList::new(&servers, repositories(REPOSITORIES)) };
        resulting_in_last_image(MeasuredRun::floor(&work, &servers))
    };
    Row::measure(name, aims, pairs, imgsync, floor).await
}

fn resulting_in_last_image(run: MeasuredRun) -> MeasuredRun {
    let (repository, tag) = (REPOSITORIES - 1, TAGS - 1);
    run.resulting(&format!("m/r{repository}"), &format!("v{tag}"), &small_image(repository, tag))
}

/// Compares everything, by one rule with a pattern and by one rule for each repository.
pub(crate) async fn unchanged(pairs: usize) -> Vec<Row> {
    let aims = Aims { wall: Some(0.35), cpu: Some(0.12), ..Aims::default() };
    let servers = start().await;
    let pattern = format!(
        "defaults: {{to: {}/m, naming: keep}}\nrules:\n- from: {}/r*\n",
        servers.target.host(),
        servers.source.host()
    );
    let configurations =
        [("one rule with a pattern", pattern, true), ("40 rules", one_rule_each(&servers, REPOSITORIES), false)];
    let mut rows = Vec::new();
    for (name, yaml, catalog) in configurations {
        let program = server::imgsync(&yaml);
        // Copies, then compares; from then on nothing is new to it.
        server::next_run(&program).run().await.assert_code(0);
        let spot_checks = count_spot_checks(&program, &servers).await;
        let imgsync = async || MeasuredRun::imgsync(server::next_run(&program), &servers).expecting("unchanged", ALL);
        let work = WorkList { catalog, ..WorkList::new(&servers, known_repositories(REPOSITORIES, TAGS, spot_checks)) };
        let floor = async || MeasuredRun::floor(&work, &servers);
        let row = Row::measure(format!("400 tags, unchanged, {name}"), aims, pairs, imgsync, floor).await;
        rows.push(row.with_skopeo(MeasuredRun::skopeo_sync(&servers, REPOSITORIES).filter(|_| catalog)).await);
    }
    rows
}

/// Runs imgsync and returns how many tags it asks the target for.
pub(crate) async fn count_spot_checks(program: &imgsync_tests::Imgsync, servers: &Servers) -> usize {
    servers.target.clear_requests();
    server::next_run(program).run().await.assert_code(0);
    servers.target.requests() as usize
}

/// Compares one tag, by `imgsync sync` and `imgsync run`.
pub(crate) async fn one(pairs: usize) -> Vec<Row> {
    let aims = Aims { wall: Some(0.03), ..Aims::default() };
    let servers = Servers::docker().await;
    let image = small_image(0, 0);
    servers.source.push("r0", "v0", &image).await;
    let program = server::imgsync(&one_rule_each(&servers, 1));
    server::next_run(&program).run().await.assert_code(0);

    let (source, target) = (format!("{}/r0:v0", servers.source.host()), format!("{}/m/r0:v0", servers.target.host()));
    let sync = async || {
        let program = program.again().args(["sync", "--quiet", &source, &target]);
        MeasuredRun::imgsync(program, &servers).repeated(SHORT_RUNS)
    };
    let named = RepositoryWork { tags: vec!["v0".to_owned()], ..RepositoryWork::listed("r0", "m/r0") };
    let work = WorkList::new(&servers, vec![named]);
    let floor = async || MeasuredRun::floor(&work, &servers).repeated(SHORT_RUNS);
    let row = Row::measure("1 tag, unchanged, `imgsync sync`", aims, pairs, sync, floor).await;
    let (source, target) = (format!("docker://{source}"), format!("docker://{target}"));
    let fixed = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"];
    let skopeo = MeasuredRun::skopeo(&[&fixed[..], &[&source, &target]].concat(), &servers);
    let by_sync = row.with_skopeo(skopeo.map(|run| run.repeated(SHORT_RUNS))).await;

    let spot_checks = count_spot_checks(&program, &servers).await;
    let run = async || {
        let run = MeasuredRun::imgsync(server::next_run(&program), &servers).expecting("unchanged", 1);
        run.repeated(SHORT_RUNS)
    };
    let work = WorkList::new(&servers, known_repositories(1, 1, spot_checks));
    let floor = async || MeasuredRun::floor(&work, &servers).repeated(SHORT_RUNS);
    vec![by_sync, Row::measure("1 tag, unchanged, `imgsync run`", aims, pairs, run, floor).await]
}
