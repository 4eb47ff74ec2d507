//! Golden test: this release reads what an earlier one left in the store. `golden/1-store.json` has all keys that version 1
//! wrote: an ended batch with results of each kind, a batch of which tasks wait, the digest cache, provenance.
//!
//! The file never changes. A new version of a format adds a file of its own: `IMGSYNC_WRITE_GOLDEN=FILE` writes it.

use std::time::Duration;

use imgsync_tests::RedisServer;
use imgsync_tests::cluster::number;
use imgsync_tests::fault::{FaultAction, RequestMatcher, RequestType};
use imgsync_tests::program::Imgsync;
use serde_json::Value;

use crate::support::{ClusterFixture, kill};

const STORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/golden/1-store.json");

/// Returns all keys as JSON, with `hex:` before strings that are not plain text. Times to live are left out, and keys that
/// have less than an hour to live, such as leases.
const DUMP: &str = r#"
local function text(value)
    if not string.find(value, '[^%w%p ]') and string.sub(value, 1, 4) ~= 'hex:' then return value end
    return 'hex:' .. string.gsub(value, '.', function(c) return string.format('%02x', string.byte(c)) end)
end
local function all(values) for n, value in ipairs(values) do values[n] = text(value) end return values end
local keys, found = redis.call('KEYS', '*'), {}
table.sort(keys)
for _, key in ipairs(keys) do
    local kind, values = redis.call('TYPE', key).ok, nil
    if kind == 'string' then values = {redis.call('GET', key)}
    elseif kind == 'hash' then values = redis.call('HGETALL', key)
    elseif kind == 'list' then values = redis.call('LRANGE', key, 0, -1)
    elseif kind == 'set' then values = redis.call('SMEMBERS', key)
    elseif kind == 'zset' then values = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    else error('a key of type ' .. kind .. ': ' .. key) end
    local left = redis.call('PTTL', key)
    if left < 0 or left > 3600000 then found[#found + 1] = {text(key), kind, all(values)} end
end
return cjson.encode(found)
"#;

/// Creates keys from JSON as `DUMP` returns it.
const LOAD: &str = r#"
local function bytes(text)
    if string.sub(text, 1, 4) ~= 'hex:' then return text end
    return (string.gsub(string.sub(text, 5), '..', function(two) return string.char(tonumber(two, 16)) end))
end
for _, one in ipairs(cjson.decode(ARGV[1])) do
    local key, kind, values = bytes(one[1]), one[2], one[3]
    for n = 1, #values do
        local value = bytes(values[n])
        if kind == 'string' then redis.call('SET', key, value)
        elseif kind == 'list' then redis.call('RPUSH', key, value)
        elseif kind == 'set' then redis.call('SADD', key, value)
        elseif n % 2 == 0 and kind == 'hash' then redis.call('HSET', key, bytes(values[n - 1]), value)
        elseif n % 2 == 0 and kind == 'zset' then redis.call('ZADD', key, value, bytes(values[n - 1])) end
    end
end
return 'loaded'
"#;

/// Writes a golden file from the current program: what `STORE` was made by.
async fn write_golden(file: &str) {
    let mut fixture = ClusterFixture::new(2, 5).await;
    let denied =
        RequestMatcher::kind(RequestType::ManifestPut).when(|request| request.reference.as_deref() == Some("v4"));
    fixture.target.on(denied).always().act(FaultAction::error(403, "DENIED"));
    let empty = format!("- from: {}/none/**\n", fixture.source.host());
    fixture.config.push_str(&empty);
    let workers = fixture.cluster.start_workers(1, 2).await;
    let run = || fixture.cluster.imgsync(&fixture.config).args(["run", "--json"]);
    run().run().await.assert_code(1);
    drop(workers);
    // Nobody takes the tasks of the second batch.
    let mut second = fixture.cluster.imgsync(&fixture.config).args(["run", "--force", "--json"]).spawn();
    let is_planned = |shown: &Value| shown["state"] == "running" && !shown["planned"].is_null();
    fixture.cluster.wait_for_batch(is_planned, Duration::from_secs(60)).await;
    kill(&mut second).await;
    let dumped = fixture.cluster.store.command(&["EVAL", DUMP, "0"]);
    let json = dumped.split_once("\r\n").unwrap().1.trim_end();
    let keys: Vec<Value> = serde_json::from_str(json).unwrap();
    let lines: Vec<String> = keys.iter().map(Value::to_string).collect();
    std::fs::write(file, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_version_1_left_in_the_store_is_read() {
    if let Some(file) = std::env::var_os("IMGSYNC_WRITE_GOLDEN") {
        return write_golden(file.to_str().unwrap()).await;
    }
    let store = RedisServer::start();
    let keys = std::fs::read_to_string(STORE).unwrap();
    let loaded = store.command(&["EVAL", LOAD, "0", &keys]);
    assert!(loaded.contains("loaded"), "{loaded}");
    let broker = imgsync_tests::RabbitMq::shared();
    let program = Imgsync::new();
    program.file("imgsync.yaml", "registries: {}\n");
    let program = program.env("IMGSYNC_BROKER", broker.url()).env("IMGSYNC_STORE", store.url());
    let imgsync = async |arguments: &[&str]| program.again().args(arguments).run().await.assert_code(0);

    let listed = imgsync(&["batch", "list", "--json"]).await;
    let batches: Vec<Value> = listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(batches.len(), 2, "{}", listed.stdout);
    let (waiting, ended) = (&batches[0], &batches[1]);
    assert!(!ended["ended"].is_null() && waiting["ended"].is_null(), "{}", listed.stdout);
    let counts = |batch: &Value| {
        ["total", "waiting", "copied", "unchanged", "failed"].map(|name| number(batch, &format!("/counts/{name}")))
    };
    assert_eq!(counts(ended), [10, 0, 8, 0, 2]);
    assert_eq!(counts(waiting), [10, 10, 0, 0, 0]);

    let id = ended["batch"].as_str().unwrap();
    let shown = imgsync(&["batch", "show", id, "--json"]).await.json();
    let failures = &shown["failed_by_kind"][0];
    assert!(failures["kind"] == "denied" && failures["failed"] == 2, "{shown:#}");
    let failed = |repository: &str| failures["example"]["target"].to_string().contains(&format!("/m/{repository}:v4"));
    assert!(failed("r00") || failed("r01"), "{shown:#}");
    let cached = imgsync(&["cache", "export"]).await.stdout;
    assert_eq!(cached.lines().filter(|line| line.contains(r#""repository":"m/r0"#)).count(), 8, "{cached}");
}
