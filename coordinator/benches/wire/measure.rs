//! Measures programs, in pairs, and prints what they took.

use std::rc::Rc;
use std::time::{Duration, Instant};

use imgsync_tests::images::TestImage;
use imgsync_tests::program::Imgsync;
use imgsync_tests::resource_usage::children_cpu_seconds;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::server::CountingServer;
use crate::work_list::WorkList;

/// Longest interval at which the memory of a program is read.
const MEMORY_INTERVAL: Duration = Duration::from_millis(4);

/// A program to measure, and the registries whose requests are counted.
pub(crate) struct MeasuredRun {
    program: Imgsync,
    servers: Servers,
    /// How often it runs; the mean counts.
    repeat: u32,
    /// A count of imgsync's report, and its value.
    expected: Option<(&'static str, usize)>,
    /// An image that the target must hold then.
    result: Option<(String, String, TestImage)>,
}

/// Source and target.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) source: Rc<CountingServer>,
    pub(crate) target: Rc<CountingServer>,
}

/// What a run took.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
    pub(crate) peak_mib: f64,
    pub(crate) source: u64,
    pub(crate) target: u64,
}

/// Goals of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Aims {
    pub(crate) wall: Option<f64>,
    /// Times the wall time of the floor.
    pub(crate) wall_ratio: Option<f64>,
    pub(crate) cpu: Option<f64>,
    pub(crate) peak_mib: Option<f64>,
}

/// Measurements of one row.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) aims: Aims,
    pub(crate) imgsync: Vec<Measurement>,
    pub(crate) floor: Vec<Measurement>,
    pub(crate) skopeo: Option<Measurement>,
}

impl Servers {
    /// Starts two docker-registry servers.
    pub(crate) async fn docker() -> Servers {
        let (source, target) = tokio::join!(CountingServer::docker(), CountingServer::docker());
        Servers::new(source, target)
    }

    pub(crate) fn new(source: CountingServer, target: CountingServer) -> Servers {
        Servers { source: Rc::new(source), target: Rc::new(target) }
    }

    /// Returns the same source with another target.
    pub(crate) fn with_target(&self, target: CountingServer) -> Servers {
        Servers { source: Rc::clone(&self.source), target: Rc::new(target) }
    }
}

impl MeasuredRun {
    fn new(program: Imgsync, servers: &Servers) -> MeasuredRun {
        let program = program.limit(Duration::from_secs(1800));
        MeasuredRun { program, servers: servers.clone(), repeat: 1, expected: None, result: None }
    }

    /// Creates a run of `imgsync`.
    pub(crate) fn imgsync(program: Imgsync, servers: &Servers) -> MeasuredRun {
        MeasuredRun::new(program, servers)
    }

    /// Creates a run of the floor client.
    pub(crate) fn floor(work: &WorkList, servers: &Servers) -> MeasuredRun {
        let program = Imgsync::at(std::env::current_exe().unwrap()).arg("--floor");
        MeasuredRun::new(program.stdin(serde_json::to_vec(work).unwrap()), servers)
    }

    /// Creates a run of skopeo; `None` if it is not installed.
    pub(crate) fn skopeo(arguments: &[&str], servers: &Servers) -> Option<MeasuredRun> {
        let program = Imgsync::at(imgsync_tests::servers::find_program("skopeo")?).arg("--insecure-policy");
        Some(MeasuredRun::new(program.args(arguments), servers))
    }

    /// Creates a run of skopeo that copies all tags of `r0`, `r1` … to `m/`.
    pub(crate) fn skopeo_sync(servers: &Servers, repositories: usize) -> Option<MeasuredRun> {
        let names: String = (0..repositories).map(|number| format!("    r{number}: []\n")).collect();
        let yaml = format!("{}:\n  tls-verify: false\n  images:\n{names}", servers.source.host());
        let fixed = ["sync", "--all", "--preserve-digests", "--dest-tls-verify=false", "--src=yaml", "--dest=docker"];
        let mut run = MeasuredRun::skopeo(&fixed, servers)?;
        let file = run.program.file("sync.yaml", yaml);
        run.program = run.program.arg(file).arg(format!("{}/m", servers.target.host()));
        Some(run)
    }

    /// Fails unless imgsync's report has a count.
    pub(crate) fn expecting(self, name: &'static str, count: usize) -> MeasuredRun {
        MeasuredRun { expected: Some((name, count)), ..self }
    }

    /// Fails unless the target holds an image afterwards.
    pub(crate) fn resulting(self, repository: &str, tag: &str, image: &TestImage) -> MeasuredRun {
        MeasuredRun { result: Some((repository.to_owned(), tag.to_owned(), image.clone())), ..self }
    }

    /// Repeats it in one measurement, for runs of a few milliseconds.
    pub(crate) fn repeated(self, repeat: u32) -> MeasuredRun {
        MeasuredRun { repeat, ..self }
    }

    /// Runs and measures it.
    pub(crate) async fn measure(&self) -> Measurement {
        let Servers { source, target } = &self.servers;
        source.clear_requests();
        target.clear_requests();
        let (mut wall, mut peak, before) = (Duration::ZERO, 0, children_cpu_seconds());
        for _ in 0..self.repeat {
            let started = Instant::now();
            let mut running = self.program.spawn();
            let pid = Pid::from_raw(running.pid() as i32).unwrap();
            // Tells when it ends, and leaves it to be waited for.
            let mut ended = tokio::task::spawn_blocking(move || {
                waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
                Instant::now()
            });
            let ended = loop {
                // More often at first: a short run ends before the longest interval.
                let interval = (started.elapsed() / 8).min(MEMORY_INTERVAL);
                match tokio::time::timeout(interval, &mut ended).await {
                    Ok(ended) => break ended.unwrap(),
                    Err(_) => peak = peak.max(running.peak_rss_bytes()),
                }
            };
            wall += ended - started;
            let output = running.wait().await.assert_code(0);
            peak = peak.max(output.peak_rss_bytes);
            if let Some((name, count)) = self.expected {
                assert_eq!(output.json()["counts"][name], count, "{}", output.stdout);
            }
        }
        let repeat = f64::from(self.repeat);
        Measurement {
            wall: wall.as_secs_f64() / repeat,
            cpu: (children_cpu_seconds() - before) / repeat,
            peak_mib: peak as f64 / f64::from(1 << 20),
            source: source.requests() / u64::from(self.repeat),
            target: target.requests() / u64::from(self.repeat),
        }
    }

    async fn assert_result(&self) {
        if let Some((repository, tag, image)) = &self.result {
            self.servers.target.assert_holds(repository, tag, image).await;
        }
    }
}

impl Row {
    /// Measures imgsync and the floor in turn. The first pair also tells which requests they sent.
    pub(crate) async fn measure(
        name: impl Into<String>,
        aims: Aims,
        pairs: usize,
        imgsync: impl AsyncFn() -> MeasuredRun,
        floor: impl AsyncFn() -> MeasuredRun,
    ) -> Row {
        let mut row = Row { name: name.into(), aims, ..Row::default() };
        println!("\n== {}", row.name);
        for pair in 0..pairs {
            for is_floor in [false, true] {
                let run = if is_floor { floor().await } else { imgsync().await };
                let measured = run.measure().await;
                let who = if is_floor { "floor" } else { "imgsync" };
                measured.print(who);
                if pair == 0 {
                    let Servers { source, target } = &run.servers;
                    println!("  source {}\n  target {}", source.describe_requests(), target.describe_requests());
                }
                run.assert_result().await;
                if is_floor { &mut row.floor } else { &mut row.imgsync }.push(measured);
            }
        }
        row
    }

    /// Measures skopeo once: it takes long.
    pub(crate) async fn with_skopeo(mut self, run: Option<MeasuredRun>) -> Row {
        if let Some(run) = run {
            let measured = run.measure().await;
            measured.print("skopeo");
            run.assert_result().await;
            self.skopeo = Some(measured);
        }
        self
    }

    /// Returns the median over the pairs of how many times the floor imgsync takes.
    pub(crate) fn ratio(&self, number: impl Fn(&Measurement) -> f64) -> f64 {
        median(self.imgsync.iter().zip(&self.floor).map(|(imgsync, floor)| number(imgsync) / number(floor)))
    }
}

impl Measurement {
    /// Returns the median of each number.
    pub(crate) fn median(runs: &[Measurement]) -> Measurement {
        let of = |number: fn(&Measurement) -> f64| median(runs.iter().map(number));
        Measurement {
            wall: of(|run| run.wall),
            cpu: of(|run| run.cpu),
            peak_mib: of(|run| run.peak_mib),
            source: of(|run| run.source as f64) as u64,
            target: of(|run| run.target as f64) as u64,
        }
    }

    fn print(&self, who: &str) {
        let Measurement { wall, cpu, peak_mib, source, target } = self;
        println!("{who:<8} {wall:>8.3} s  CPU {cpu:>7.3} s  {peak_mib:>6.1} MiB  {source} + {target} requests");
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    if numbers.len() % 2 == 1 { numbers[middle] } else { (numbers[middle - 1] + numbers[middle]) / 2.0 }
}
