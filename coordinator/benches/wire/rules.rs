//! Unchanged runs of more and more rules, between registries in memory.

use imgsync_tests::images;

use crate::images::one_rule_each;
use crate::measure::{Aims, MeasuredRun, Row, Servers};
use crate::server::{self, CountingServer};
use crate::small_images::count_spot_checks;
use crate::work_list::{RepositoryWork, WorkList};

const TAGS: usize = 10;

/// Compares 10, 100 and 1,000 repositories of ten tags, with a rule for each.
pub(crate) async fn unchanged(pairs: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for rules in [10, 100, 1_000] {
        let servers = Servers::new(CountingServer::in_memory().await, CountingServer::in_memory().await);
        let mut repositories = Vec::new();
        for number in 0..rules {
            let image = images::single(&format!("rules-{number}"));
            let mut repository = RepositoryWork::listed(&format!("r{number}"), &format!("m/r{number}"));
            for tag in 0..TAGS {
                let tag = format!("v{tag}");
                servers.source.push(&repository.source, &tag, &image).await;
                servers.target.push(&repository.target, &tag, &image).await;
                repository.known.insert(tag, image.root.clone());
            }
            repositories.push(repository);
        }
        let program = server::imgsync(&one_rule_each(&servers, rules));
        server::next_run(&program).run().await.assert_code(0);
        let spot_checks = count_spot_checks(&program, &servers).await;
        for repository in repositories.iter_mut().take(spot_checks) {
            repository.spot_checked.insert("v0".to_owned());
        }
        // Ten rules take milliseconds.
        let repeat = (100 / rules as u32).max(1);
        let imgsync = async || {
            let run = MeasuredRun::imgsync(server::next_run(&program), &servers).expecting("unchanged", rules * TAGS);
            run.repeated(repeat)
        };
        let work = WorkList::new(&servers, repositories);
        let floor = async || MeasuredRun::floor(&work, &servers).repeated(repeat);
        let name = format!("{rules} rules of {TAGS} tags, unchanged, registries in memory");
        rows.push(Row::measure(name, Aims::default(), pairs, imgsync, floor).await);
    }
    rows
}
