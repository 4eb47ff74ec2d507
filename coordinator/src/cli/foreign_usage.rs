//! Commands and options of skopeo, crane, regsync, regctl, docker and kubectl: what to type here instead.

use imgsync_worker::copy::ImageLocation;

use super::Command;
use super::sync::SyncArgs;
use super::typed_line::{TypedLine, knows_option};

/// A command of another program, or a word that suggests itself.
struct ForeignCommand {
    /// The command that it follows (`batch`); empty for a first word.
    below: &'static str,
    names: &'static [&'static str],
    /// The words in its place; empty if there are none.
    here: &'static [&'static str],
    why: &'static str,
}

const fn command(
    below: &'static str,
    names: &'static [&'static str],
    here: &'static [&'static str],
    why: &'static str,
) -> ForeignCommand {
    ForeignCommand { below, names, here, why }
}

const FOREIGN_COMMANDS: &[ForeignCommand] = &[
    command("", &["mirror", "start", "all"], &["run"], "`run` runs the rules of a configuration"),
    command("", &["apply"], &["run"], "`run` takes the configuration as its argument"),
    command("", &["pull"], &["sync"], "images are copied, to a folder too: `imgsync sync IMAGE oci:DIR:TAG`"),
    command("", &["save"], &["sync"], "images are copied, to a file too: `imgsync sync IMAGE docker-archive:FILE`"),
    command(
        "",
        &["push", "load"],
        &["sync"],
        "images are copied, from a folder too: `imgsync sync oci:DIR:TAG TARGET`",
    ),
    command("", &["tag", "retag", "image"], &["sync"], "a tag is made by a copy"),
    command("", &["digest", "manifest", "show"], &["inspect"], "`inspect` shows the digests of an image"),
    command("", &["catalog", "repos"], &["tags"], "`tags 'HOST/**'` lists repositories with their tags"),
    command(
        "",
        &["check", "validate", "lint"],
        &["config", "check"],
        "`config check` checks a configuration, `run --dry-run` shows what would be copied",
    ),
    command("", &["convert"], &["config", "import"], "`config import` converts the files of other programs"),
    command("", &["schema"], &["config", "schema"], "it is a command of `config`"),
    command("", &["compare", "diff"], &["verify"], "`verify` compares targets with their sources"),
    command("", &["daemon", "up", "schedule", "dashboard"], &["serve"], "`serve` runs rules on their schedules"),
    command(
        "",
        &["batches", "ps", "jobs", "history", "list"],
        &["batch", "list"],
        "batches are listed by `batch list`",
    ),
    command("", &["status"], &["batch", "show"], "`batch show` shows the newest batch, or the one that is named"),
    command("", &["watch"], &["batch", "watch"], "it is a command of `batch`"),
    command("", &["pause"], &["batch", "pause"], "it is a command of `batch`"),
    command("", &["resume"], &["batch", "resume"], "it is a command of `batch`"),
    command("", &["cancel", "stop"], &["batch", "cancel"], "it is a command of `batch`"),
    command("", &["requeue", "retry"], &["batch", "requeue"], "it is a command of `batch`"),
    command("", &["report"], &["batch", "report"], "it is a command of `batch`"),
    command("", &["export"], &["cache", "export"], "it is a command of `cache`"),
    command("", &["worker"], &[], "workers are a program of their own: type `imgsync-worker`"),
    command(
        "",
        &["login", "logout", "auth"],
        &[],
        "credentials are those of `docker login`, or of `registries:` in the configuration",
    ),
    command(
        "",
        &["delete", "rm", "rmi"],
        &[],
        "only rules with `prune:` delete tags, and only those whose source is gone",
    ),
    command(
        "",
        &["init"],
        &[],
        "examples/quickstart.yaml is a configuration to begin with; `imgsync config schema` describes all keys",
    ),
    command("batch", &["get", "describe", "status", "inspect"], &["show"], "a batch is shown by `batch show`"),
    command(
        "batch",
        &["logs", "failures", "errors"],
        &["show", "--failures"],
        "failures are listed by `batch show --failures`",
    ),
    command("batch", &["stop", "delete", "rm", "kill", "abort"], &["cancel"], "a batch is ended by `batch cancel`"),
    command("batch", &["retry", "restart", "rerun"], &["requeue"], "failed images are requeued by `batch requeue`"),
    command("batch", &["continue", "unpause"], &["resume"], "a batch is continued by `batch resume`"),
    command("batch", &["follow", "tail", "top"], &["watch"], "a batch is followed by `batch watch`"),
    command("config", &["lint", "verify", "test"], &["check"], "a configuration is checked by `config check`"),
    command("config", &["view", "get", "cat", "dump"], &["show"], "a configuration is shown by `config show`"),
    command("config", &["convert", "migrate"], &["import"], "files of other programs are converted by `config import`"),
];

/// Commands of other programs that copy an image to this machine.
const LOCAL_COPY_COMMANDS: [&str; 2] = ["pull", "save"];

/// What becomes of an option of another program.
enum Replacement {
    /// It is left out.
    None,
    /// Other words, made from its value.
    Words(fn(&str) -> Vec<String>),
}

/// An option of another program.
struct ForeignOption {
    names: &'static [&'static str],
    takes_value: bool,
    replacement: Replacement,
    why: Reason,
}

/// Why an option is not needed here.
enum Reason {
    Text(&'static str),
    /// With the registry of the source.
    Source(fn(&str) -> String),
    /// With the registry of the target.
    Target(fn(&str) -> String),
}

const fn dropped(names: &'static [&'static str], takes_value: bool, why: &'static str) -> ForeignOption {
    ForeignOption { names, takes_value, replacement: Replacement::None, why: Reason::Text(why) }
}

const fn replaced(
    names: &'static [&'static str],
    takes_value: bool,
    by: fn(&str) -> Vec<String>,
    why: &'static str,
) -> ForeignOption {
    ForeignOption { names, takes_value, replacement: Replacement::Words(by), why: Reason::Text(why) }
}

const fn configured(names: &'static [&'static str], takes_value: bool, why: Reason) -> ForeignOption {
    ForeignOption { names, takes_value, replacement: Replacement::None, why }
}

fn login(host: &str) -> String {
    format!(
        "credentials of {host} are those of `docker login {host}`, or `registries: {{{host}: {{username: …, password: …}}}}` in imgsync.yaml"
    )
}

fn insecure(host: &str) -> String {
    format!("for {host}, set `registries: {{{host}: {{insecure: true}}}}` in imgsync.yaml (`tls: off` for plain HTTP)")
}

fn certificates(host: &str) -> String {
    format!("for {host}, set `registries: {{{host}: {{ca: FILE}}}}` in imgsync.yaml")
}

fn proxy(host: &str) -> String {
    format!(
        "a proxy is set by HTTPS_PROXY, or for one registry by `registries: {{{host}: {{proxy: URL}}}}` in imgsync.yaml"
    )
}

fn platform(value: &str) -> Vec<String> {
    let value = if value.contains('/') { value.to_owned() } else { format!("linux/{value}") };
    vec!["--platform".to_owned(), value]
}

/// The user of `USER:PASSWORD`.
fn user(value: &str) -> Vec<String> {
    let user = value.split(':').next().unwrap_or_default().to_owned();
    vec!["--user".to_owned(), user, "--password-stdin".to_owned()]
}

const ALL_PLATFORMS: &str = "all platforms are copied, unless --platform names one";
const ONE_IMAGE: &str = "one command copies one tag; for all tags, put `rules: [{from: SOURCE, to: TARGET}]` into imgsync.yaml \
                         and type `imgsync run`";
const UNCHANGED: &str = "manifests and layers are copied unchanged";

const FOREIGN_OPTIONS: &[ForeignOption] = &[
    dropped(&["--all", "--all-platforms"], false, ALL_PLATFORMS),
    dropped(
        &["-a"],
        false,
        "all platforms are copied; all tags of a repository are copied by a rule and `imgsync run`",
    ),
    dropped(&["--multi-arch"], true, ALL_PLATFORMS),
    dropped(&["--all-tags"], false, ONE_IMAGE),
    dropped(&["--additional-tag", "--src", "-s", "--dest"], true, "`sync` copies one image to one target"),
    dropped(&["--scoped"], false, "names are chosen by `--naming full`, with `run`"),
    configured(
        &["--src-creds", "--src-username", "--src-password", "--src-registry-token", "--creds"],
        true,
        Reason::Source(login),
    ),
    replaced(&["--dest-creds"], true, user, "the password of the target is read from stdin, or from IMGSYNC_PASSWORD"),
    replaced(
        &["--dest-username"],
        true,
        user,
        "the password of the target is read from stdin, or from IMGSYNC_PASSWORD",
    ),
    configured(&["--dest-password", "--dest-registry-token"], true, Reason::Target(login)),
    dropped(&["--src-no-creds", "--dest-no-creds", "--no-creds"], false, "without credentials, access is anonymous"),
    replaced(
        &["--username", "-u"],
        true,
        user,
        "the user at the target is --user, and the password is read from stdin",
    ),
    replaced(&["-p"], true, |_| vec!["--password-stdin".to_owned()], "the password is read from stdin"),
    configured(&["--src-tls-verify", "--tls-verify", "--insecure"], false, Reason::Source(insecure)),
    configured(&["--dest-tls-verify"], false, Reason::Target(insecure)),
    configured(&["--src-cert-dir", "--cert-dir"], true, Reason::Source(certificates)),
    configured(&["--dest-cert-dir"], true, Reason::Target(certificates)),
    configured(&["--proxy", "--http-proxy", "--https-proxy"], true, Reason::Source(proxy)),
    dropped(
        &["--insecure-policy"],
        false,
        "signatures are demanded by --signed-by or by `policy` in the configuration",
    ),
    dropped(&["--policy"], true, "the keys that must have signed are named by --signed-by"),
    dropped(
        &["--authfile", "--src-authfile", "--dest-authfile"],
        true,
        "the credentials file is named by REGISTRY_AUTH_FILE",
    ),
    dropped(
        &["--preserve-digests", "--dest-compress", "--dest-decompress", "--force-compress-format"],
        false,
        UNCHANGED,
    ),
    dropped(
        &["--dest-compress-format", "--dest-compress-level", "--format", "-f"],
        true,
        "manifests and layers are copied unchanged; `--json` prints JSON",
    ),
    dropped(&["--digest-tags", "--force-recursive"], false, "digest tags and referrers are copied with the image"),
    replaced(&["--remove-signatures"], false, |_| words(&["--referrers", "none"]), "signatures are referrers"),
    dropped(&["--sign-by", "--sign-by-sigstore", "--sign-passphrase-file"], true, "images are signed by `cosign sign`"),
    dropped(&["--digestfile"], true, "the digest is printed on stdout"),
    replaced(&["--retry-times"], true, attempts, "--attempts counts the first attempt too"),
    replaced(&["--command-timeout"], true, |value| words(&["--timeout", value]), "the time limit is --timeout"),
    replaced(&["--override-arch"], true, platform, "a platform is named by --platform"),
    dropped(&["--override-os", "--override-variant"], true, "a platform is named by --platform os/arch[/variant]"),
    replaced(
        &["--jobs", "-j", "--image-parallel-copies", "--parallel"],
        true,
        |value| words(&["--concurrency", value]),
        "the number of transfers is --concurrency",
    ),
    dropped(
        &["--no-clobber", "-n"],
        false,
        "`sync` replaces a tag that differs; a rule with `immutable: ['*']` never does, and `--dry-run` shows what would change",
    ),
    replaced(
        &["--allow-nondistributable-artifacts"],
        false,
        |_| words(&["--foreign-layers"]),
        "these layers are foreign layers",
    ),
    dropped(&["--raw", "--config"], false, "`--json` prints everything about an image"),
    replaced(&["--output", "-o"], true, |_| words(&["--json"]), "the only other format is --json"),
    replaced(&["--file"], true, |value| words(&["-c", value]), "the configuration is named after -c"),
    replaced(&["-d"], false, |_| words(&["--detach"]), "the long form is --detach"),
    replaced(
        &["--verbosity", "--log-level", "--logopt"],
        true,
        |_| words(&["--debug"]),
        "debug messages are printed by --debug",
    ),
    dropped(&["--missing"], false, "tags that exist are left alone by `immutable: ['*']` in the rule"),
    dropped(&["--yes", "-y"], false, "no command asks"),
    replaced(&["--dryrun"], false, |_| words(&["--dry-run"]), "the option is --dry-run"),
    replaced(&["--follow", "-w", "--watch"], false, |_| Vec::new(), "`imgsync batch watch` follows a batch"),
];

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// skopeo counts retries.
fn attempts(retries: &str) -> Vec<String> {
    let retries: u32 = retries.parse().unwrap_or(4);
    vec!["--attempts".to_owned(), retries.saturating_add(1).to_string()]
}

/// Returns the hint for a command of another program, with its options.
pub(super) fn hint_for_command(word: &str, line: &TypedLine) -> Option<String> {
    let at = line.words.iter().position(|typed| typed == word)?;
    let below = if Some(at) == line.command_position() { "" } else { line.command() };
    let known = FOREIGN_COMMANDS.iter().find(|known| known.below == below && known.names.contains(&word))?;
    if known.here.is_empty() {
        return Some(known.why.to_owned());
    }
    let mut typed = line.words.clone();
    typed.splice(at..=at, known.here.iter().map(|word| (*word).to_owned()));
    // `regctl image copy`, `crane auth login`: the second word is part of the command.
    if below.is_empty()
        && typed.get(at + known.here.len()).is_some_and(|next| ["copy", "cp", "inspect"].contains(&next.as_str()))
    {
        typed.remove(at + known.here.len());
    }
    let (mut typed, mut reasons) = replace_options(&TypedLine::new(typed));
    if below.is_empty()
        && LOCAL_COPY_COMMANDS.contains(&word)
        && let Some(target) = local_target_for_missing_one(&typed, word)
    {
        typed.words.push(target);
    }
    reasons.insert(0, known.why.to_owned());
    Some(join(reasons, &typed))
}

/// Returns a layout or archive for the copy of an image that has no target: `sync IMAGE` alone pushes to the user's
/// repositories.
fn local_target_for_missing_one(line: &TypedLine, word: &str) -> Option<String> {
    let Command::Sync(sync) = line.parse()?.command? else { return None };
    match *sync {
        SyncArgs { source: ImageLocation::Registry(image), target: None, .. } => {
            let name = image.repository.basename();
            Some(if word == "save" { format!("docker-archive:{name}.tar") } else { format!("oci:{name}") })
        }
        _ => None,
    }
}

/// Returns the hint for options of other programs; `None` if there are none.
pub(super) fn hint_for_option(line: &TypedLine) -> Option<String> {
    let (typed, reasons) = replace_options(line);
    (!reasons.is_empty()).then(|| join(reasons, &typed))
}

/// Formats reasons and the command line, which is left out if it is still not valid.
fn join(reasons: Vec<String>, typed: &TypedLine) -> String {
    let reasons = reasons.join("; ");
    match typed.to_shell() {
        Some(line) => format!("{reasons}. Type `{line}`"),
        None => reasons,
    }
}

/// Replaces all options of other programs, and returns the reasons.
fn replace_options(line: &TypedLine) -> (TypedLine, Vec<String>) {
    let (mut typed, mut found) = (Vec::new(), Vec::new());
    let mut words = line.words.iter().peekable();
    while let Some(word) = words.next() {
        let (name, joined) = match word.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name, Some(value)),
            _ => (word.as_str(), None),
        };
        // skopeo's format of a copy, elsewhere a file.
        let is_file = name == "-f" && !["sync", "copy", "cp", "inspect"].contains(&line.command());
        let name = if is_file { "--file" } else { name };
        let foreign = FOREIGN_OPTIONS.iter().find(|known| known.names.contains(&name));
        let Some(foreign) = foreign.filter(|_| !knows_option(line.command(), name)) else {
            typed.push(word.clone());
            continue;
        };
        let value = match (foreign.takes_value, joined) {
            (_, Some(value)) => value.to_owned(),
            (true, None) => words.next().cloned().unwrap_or_default(),
            (false, None) => String::new(),
        };
        if let Replacement::Words(replace) = foreign.replacement {
            typed.extend(replace(&value));
        }
        found.push((foreign, value == "true" && name.ends_with("tls-verify")));
    }
    // Without the values of those options, which may look like images.
    let typed = TypedLine::new(typed);
    let (source, target) = registries(&typed);
    let mut reasons = Vec::<String>::new();
    for (foreign, is_default) in found {
        let reason = match &foreign.why {
            _ if is_default => "certificates are verified by default".to_owned(),
            Reason::Text(why) => (*why).to_owned(),
            Reason::Source(why) => why(&source),
            Reason::Target(why) => why(&target),
        };
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    (typed, reasons)
}

/// Returns the registries of the source and of the target.
fn registries(line: &TypedLine) -> (String, String) {
    let registry = |word: &str| match word.parse::<ImageLocation>() {
        Ok(ImageLocation::Registry(image)) if word.contains(['/', ':', '.']) => Some(image.registry.to_string()),
        _ => None,
    };
    let mut hosts = line.arguments().filter_map(registry);
    let source = hosts.next().unwrap_or_else(|| "HOST".to_owned());
    (source, hosts.next().unwrap_or_else(|| "HOST".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser as _;

    use super::super::{Cli, usage};
    use super::*;

    /// Returns the hint for a command line.
    fn hint(line: &str) -> String {
        let typed: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(typed.clone()).expect_err(line);
        usage::hint(&error, &typed).unwrap_or_else(|| panic!("{line}: {error}"))
    }

    #[test]
    fn options_of_skopeo_and_crane_are_replaced_in_the_command_line_as_typed() {
        for (typed, wanted) in [
            ("imgsync sync a r.example/b --all", "imgsync sync a r.example/b"),
            (
                "imgsync copy --multi-arch all docker://a docker://r.example/b",
                "imgsync copy docker://a docker://r.example/b",
            ),
            ("imgsync sync a r.example/b --dest-creds me:x", "imgsync sync a r.example/b --user me --password-stdin"),
            (
                "imgsync sync a r.example/b --dest-creds=me:x --all",
                "imgsync sync a r.example/b --user me --password-stdin",
            ),
            ("imgsync cp a r.example/b --retry-times 3 -q", "imgsync cp a r.example/b --attempts 4 -q"),
            ("imgsync cp -j 4 a r.example/b", "imgsync cp --concurrency 4 a r.example/b"),
            ("imgsync sync a r.example/b --remove-signatures", "imgsync sync a r.example/b --referrers none"),
            ("imgsync --override-arch arm64 sync a r.example/b", "imgsync --platform linux/arm64 sync a r.example/b"),
            ("imgsync sync --override-arch arm64 a r.example/b", "imgsync sync --platform linux/arm64 a r.example/b"),
            ("imgsync inspect --format {{.Digest}} a", "imgsync inspect a"),
            ("imgsync batch list -o json", "imgsync batch list --json"),
            ("imgsync run --file m.yaml", "imgsync run -c m.yaml"),
            ("imgsync run -f m.yaml", "imgsync run -c m.yaml"),
            ("imgsync copy -f oci a r.example/b", "imgsync copy a r.example/b"),
            ("imgsync cp -n a r.example/b", "imgsync cp a r.example/b"),
        ] {
            let hint = hint(typed);
            let line = hint.rsplit_once("Type `").map(|(_, line)| line.trim_end_matches('`'));
            match typed.starts_with("imgsync --override") {
                // An option of `sync` before the command is wrong either way.
                true => assert_eq!(line, None, "{typed}: {hint}"),
                false => assert_eq!(line, Some(wanted), "{typed}: {hint}"),
            }
        }
    }

    #[test]
    fn settings_of_a_registry_name_it() {
        let said =
            hint("imgsync sync gcr.io/a/b r.example/b --src-tls-verify=false --dest-tls-verify=false --src-creds a:b");
        for wanted in [
            "registries: {gcr.io: {insecure: true}}",
            "registries: {r.example: {insecure: true}}",
            "docker login gcr.io",
            "Type `imgsync sync gcr.io/a/b r.example/b`",
        ] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        assert!(hint("imgsync sync a r.example/b --src-tls-verify=true").contains("verified by default"));
        assert!(!hint("imgsync sync a r.example/b --insecure=true").contains("verified by default"));
        let before = hint("imgsync copy --src-creds me:pw gcr.io/a r.example/b");
        assert!(before.contains("gcr.io") && !before.contains("docker.io"), "{before}");
        for (typed, wanted) in [
            (
                "imgsync gcr --user me --proxy http://proxy.example:3128",
                "`registries: {HOST: {proxy: URL}}` in imgsync.yaml. Type `imgsync gcr --user me`",
            ),
            (
                "imgsync sync --proxy=proxy.example:3128 gcr.io/a/b r.example/b",
                "HTTPS_PROXY, or for one registry by `registries: {gcr.io: {proxy: URL}}`",
            ),
        ] {
            assert!(hint(typed).contains(wanted), "{typed}: {}", hint(typed));
        }
    }

    #[test]
    fn commands_of_other_programs_lead_to_those_of_this_one() {
        for (typed, wanted) in [
            ("imgsync pull alpine oci:d:1", "Type `imgsync sync alpine oci:d:1`"),
            ("imgsync pull redis", "Type `imgsync sync redis oci:redis`"),
            ("imgsync save gcr.io/a/b:1 -q", "Type `imgsync sync gcr.io/a/b:1 -q docker-archive:b.tar`"),
            ("imgsync pull oci:d:1", "Type `imgsync sync oci:d:1`"),
            ("imgsync once --missing", "immutable: ['*']"),
            ("imgsync sync gcr.io/distroless/** r.example/b", "write a rule"),
            ("imgsync digest alpine", "Type `imgsync inspect alpine`"),
            ("imgsync image copy a r.example/b", "Type `imgsync sync a r.example/b`"),
            ("imgsync check -c regsync.yml", "Type `imgsync config check -c regsync.yml`"),
            ("imgsync status", "Type `imgsync batch show`"),
            ("imgsync login r.example", "docker login"),
            ("imgsync delete r.example/a:1", "prune"),
            ("imgsync apply --file m.yaml", "Type `imgsync run -c m.yaml`"),
            ("imgsync batch logs 0190", "Type `imgsync batch show --failures 0190`"),
            ("imgsync batch stop 0190", "Type `imgsync batch cancel 0190`"),
            ("imgsync config view", "Type `imgsync config show`"),
            ("imgsync worker", "imgsync-worker"),
        ] {
            assert!(hint(typed).contains(wanted), "{typed}: {}", hint(typed));
        }
    }

    #[test]
    fn what_stands_in_for_a_foreign_word_is_valid() {
        for known in FOREIGN_COMMANDS.iter().filter(|known| !known.here.is_empty()) {
            let typed = ["imgsync", known.below].into_iter().filter(|word| !word.is_empty());
            let typed = typed.chain(known.here.iter().copied()).chain(["--help"]);
            let error = Cli::try_parse_from(typed).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp, "{:?}: {error}", known.names);
        }
        for name in FOREIGN_OPTIONS.iter().flat_map(|known| known.names).filter(|name| **name != "--config") {
            assert!(!knows_option("sync", name), "{name} is an option here");
        }
    }
}
