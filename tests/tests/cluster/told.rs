//! Who serves tells of a batch that no `run` leads: of a registry that leaves it waiting, while it waits; of its end. Of two, one does.

use imgsync_tests::fault::{Action, Kind, Match};
use imgsync_tests::program::Running;
use imgsync_tests::servers::Receiver;

use crate::scene::{PATIENCE, Scene, until};

async fn serve(scene: &Scene, config: &str) -> Running {
    let serving = scene.cluster.imgsync(config).args(["serve", "--listen", "127.0.0.1:0"]).spawn();
    serving.wait_for_line(|line| line.ends_with("leads") || line.contains("stands by"), PATIENCE).await;
    serving
}

#[tokio::test]
async fn a_registry_that_leaves_a_batch_waiting_is_told_of_once_by_those_who_serve() {
    let scene = Scene::new(2, 3).await;
    let hook = Receiver::start().await;
    let manifests = Match::any().when(|request| matches!(request.kind, Kind::ManifestGet | Kind::ManifestHead));
    let throttles = scene.source.on(manifests).always().act(Action::too_many("3600"));
    let config =
        format!("{}notify:\n  webhook: {{url: \"{}\", on: failure}}\n  throttled: 10m\n", scene.config, hook.url());
    let _serving = [serve(&scene, &config).await, serve(&scene, &config).await];
    let _workers = scene.cluster.workers(1, 4).await;
    let run = scene.cluster.imgsync(&config).args(["run", "--detach"]).run().await.assert_code(0);
    until("somebody is told", PATIENCE, || !hook.received().is_empty()).await;
    let told = hook.received()[0].json();
    assert_eq!((&told["event"], &told["batch"]), (&"registry.throttled".into(), &run.stdout.trim().into()));
    assert_eq!((&told["registry"], &told["open"]), (&scene.source.host().into(), &6.into()));
    throttles.remove();
    scene.cluster.imgsync("").args(["batch", "cancel"]).run().await.assert_code(0);
    until("its end is told, too", PATIENCE, || hook.received().len() >= 2).await;
    let events: Vec<_> = hook.received().iter().map(|received| received.json()["event"].clone()).collect();
    assert_eq!(events, ["registry.throttled", "batch.ended"]);
}
