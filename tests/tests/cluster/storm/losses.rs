//! What is lost, and how it comes back.

use std::fmt;
use std::time::Duration;

use imgsync_tests::program::Signal;

use super::Storm;
use crate::support::{WAIT_TIMEOUT, kill, until};

/// Time in which work continues after a kill or a planned failover.
const KILL_AIM: Duration = Duration::from_secs(10);
/// Time in which work continues after a freeze or a stall.
const FREEZE_AIM: Duration = Duration::from_secs(30);
/// Time for which something stays lost after a kill, at least.
const KILL_DURATION: Duration = Duration::from_secs(12);
/// Time for which something stays frozen or stalled, at least: longer than work may stop.
const FREEZE_DURATION: Duration = Duration::from_secs(35);

/// A loss. A majority of brokers, stores and Sentinels is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    BrokerKilled,
    BrokerFrozen,
    BrokerStalled,
    MasterKilled,
    MasterFrozen,
    MasterStalled,
    MasterReplaced,
    SentinelKilled,
    SentinelFrozen,
    LeaderKilled,
    LeaderFrozen,
    WorkerKilled,
    WorkerFrozen,
}

impl Loss {
    pub(super) const ALL: [Loss; 13] = [
        Loss::BrokerKilled,
        Loss::BrokerFrozen,
        Loss::BrokerStalled,
        Loss::MasterKilled,
        Loss::MasterFrozen,
        Loss::MasterStalled,
        Loss::MasterReplaced,
        Loss::SentinelKilled,
        Loss::SentinelFrozen,
        Loss::LeaderKilled,
        Loss::LeaderFrozen,
        Loss::WorkerKilled,
        Loss::WorkerFrozen,
    ];

    /// Returns the time in which work should continue.
    pub(super) fn aim(self) -> Duration {
        match self {
            Loss::BrokerKilled
            | Loss::MasterKilled
            | Loss::MasterReplaced
            | Loss::SentinelKilled
            | Loss::LeaderKilled
            | Loss::WorkerKilled => KILL_AIM,
            _ => FREEZE_AIM,
        }
    }

    /// Returns what is lost. Losses of two groups can come together.
    pub(super) fn group(self) -> &'static str {
        match self {
            Loss::BrokerKilled | Loss::BrokerFrozen | Loss::BrokerStalled => "broker",
            // A failover needs the majority of the Sentinels.
            Loss::MasterKilled | Loss::MasterFrozen | Loss::MasterStalled | Loss::MasterReplaced => "store",
            Loss::SentinelKilled | Loss::SentinelFrozen => "sentinel",
            Loss::LeaderKilled | Loss::LeaderFrozen => "coordinator",
            Loss::WorkerKilled | Loss::WorkerFrozen => "worker",
        }
    }

    /// Returns the time for which it lasts, at least.
    pub(super) fn duration(self) -> Duration {
        if self.aim() == FREEZE_AIM { FREEZE_DURATION } else { KILL_DURATION }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Loss::BrokerKilled => "broker node killed",
            Loss::BrokerFrozen => "broker node frozen",
            Loss::BrokerStalled => "broker node stalled",
            Loss::MasterKilled => "store master killed",
            Loss::MasterFrozen => "store master frozen",
            Loss::MasterStalled => "store master stalled",
            Loss::MasterReplaced => "planned failover",
            Loss::SentinelKilled => "sentinel killed",
            Loss::SentinelFrozen => "sentinel frozen",
            Loss::LeaderKilled => "leading coordinator killed",
            Loss::LeaderFrozen => "leading coordinator frozen",
            Loss::WorkerKilled => "worker killed",
            Loss::WorkerFrozen => "worker frozen",
        })
    }
}

impl Storm {
    /// Injects a loss. `which` selects one of several servers or workers. Returns the position of the lost one.
    pub(super) async fn lose(&mut self, loss: Loss, which: usize) -> usize {
        match loss {
            Loss::BrokerKilled => {
                let which = which % 3;
                tokio::task::block_in_place(|| self.broker[which].kill());
                which
            }
            Loss::BrokerFrozen => {
                self.broker[which % 3].freeze();
                which % 3
            }
            Loss::BrokerStalled => {
                self.broker_relays[which % 3].freeze(true);
                which % 3
            }
            Loss::MasterKilled | Loss::MasterFrozen | Loss::MasterStalled | Loss::MasterReplaced => {
                let master = self.store.master();
                match loss {
                    Loss::MasterKilled => self.store.server(master).kill(),
                    Loss::MasterFrozen => self.store.server(master).freeze(),
                    Loss::MasterStalled => self.store.relay(master).freeze(true),
                    _ => tokio::task::block_in_place(|| self.store.group.fail_over()),
                }
                master
            }
            Loss::SentinelKilled => {
                self.store.group.sentinels[which % 3].kill();
                which % 3
            }
            Loss::SentinelFrozen => {
                self.store.group.sentinels[which % 3].freeze();
                which % 3
            }
            Loss::LeaderKilled | Loss::LeaderFrozen => {
                let leader = self.leader().await;
                match loss {
                    Loss::LeaderKilled => kill(&mut self.coordinators[leader]).await,
                    _ => self.coordinators[leader].signal(Signal::STOP),
                }
                leader
            }
            Loss::WorkerKilled => {
                let which = which % self.workers.len();
                kill(&mut self.workers[which]).await;
                which
            }
            Loss::WorkerFrozen => {
                let which = which % self.workers.len();
                self.workers[which].signal(Signal::STOP);
                which
            }
        }
    }

    /// Restores what a loss took.
    pub(super) fn restore(&mut self, loss: Loss, which: usize) {
        match loss {
            Loss::BrokerKilled => tokio::task::block_in_place(|| self.broker[which].restart()),
            Loss::BrokerFrozen => {
                self.broker[which].thaw();
                // A node that was suspended for longer than `net_ticktime` stays apart from the others until it is restarted:
                // https://www.rabbitmq.com/docs/partitions#suspend
                tokio::task::block_in_place(|| self.broker[which].restart());
            }
            Loss::BrokerStalled => self.broker_relays[which].freeze(false),
            Loss::MasterKilled => tokio::task::block_in_place(|| self.store.server(which).restart()),
            Loss::MasterFrozen => self.store.server(which).thaw(),
            Loss::MasterStalled => self.store.relay(which).freeze(false),
            Loss::MasterReplaced => {}
            Loss::SentinelKilled => tokio::task::block_in_place(|| self.store.group.sentinels[which].restart()),
            Loss::SentinelFrozen => self.store.group.sentinels[which].thaw(),
            Loss::LeaderKilled => self.coordinators[which] = self.start_coordinator(),
            Loss::LeaderFrozen => self.coordinators[which].signal(Signal::CONT),
            Loss::WorkerKilled => self.workers[which] = self.start_worker(),
            Loss::WorkerFrozen => self.workers[which].signal(Signal::CONT),
        }
    }

    /// Waits until every part is back, so that the next loss leaves a majority, too.
    pub(super) async fn wait_until_whole(&self) {
        let ready = || tokio::task::block_in_place(|| self.is_broker_whole());
        until("all nodes of the broker are members, and none is critical", WAIT_TIMEOUT, ready).await;
        self.store.wait_until_whole().await;
        until("a coordinator leads", WAIT_TIMEOUT, || self.leaders().len() == 1).await;
    }

    /// Reports whether all nodes of the broker are members of its cluster, and any one could be lost.
    fn is_broker_whole(&self) -> bool {
        let eval = "Nodes = rabbit_nodes:all_running(), length(Nodes) == 3 andalso lists:all(fun(Node) -> \
                    rpc:call(Node, rabbit_quorum_queue, list_with_minimum_quorum, []) == [] end, Nodes).";
        self.broker[0].try_ctl(&["eval", eval]).is_some_and(|said| said.trim() == "true")
    }
}
