//! Table of all configuration keys, their types and descriptions. Reader, messages and JSON Schema use it, so a key is
//! in all of them or in none.

/// A mapping with known keys.
#[derive(Debug)]
pub(super) struct Section {
    /// Name in messages.
    pub(super) title: &'static str,
    pub(super) keys: &'static [Key],
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) about: &'static str,
}

/// Type of a value.
#[derive(Debug)]
pub(super) enum Kind {
    Text,
    /// `true`, `on`, `yes` or `false`, `off`, `no`.
    Flag,
    Whole,
    Number,
    Duration,
    /// A date, a timestamp or an age.
    Since,
    Size,
    Url,
    Secret,
    Section(&'static Section),
    List(&'static Kind),
    /// One value, or a list of them.
    Several(&'static Kind),
    /// A mapping with user-defined keys.
    Map(&'static Kind),
    Either(&'static [Kind]),
}

const fn key(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, about }
}

pub(super) static CONFIG: Section = Section {
    title: "the configuration",
    keys: &[
        key(
            "cluster",
            Kind::Section(&CLUSTER),
            "Broker and store of a cluster. Without it, all is done in one process.",
        ),
        key(
            "registries",
            Kind::Map(&Kind::Section(&REGISTRY)),
            "Registries by host (and port): how to reach them and who is asking.",
        ),
        key("defaults", Kind::Section(&DEFAULTS), "What rules say where they do not say it themselves."),
        key("rules", Kind::List(&Kind::Section(&RULE)), "What is copied where."),
        key(
            "verify_every",
            Kind::Duration,
            "How long a target tag is believed to be there before the target is asked again (7d).",
        ),
        key("referrers_every", Kind::Duration, "How often an unchanged image is asked for new referrers (7d)."),
        key("keep", Kind::Duration, "How long finished batches are kept (90d)."),
        key("concurrency", Kind::Whole, "How many images are copied at a time (20)."),
        key(
            "if_running",
            Kind::Text,
            "What `imgsync run` does while a batch of the same rules is running: wait, join, supersede or fail (wait).",
        ),
        key("bandwidth", Kind::Size, "Bytes of blobs a second, in and out each, of one process; such as 20MiB."),
        key("traffic", Kind::Size, "Bytes of blobs a month, in and out together, that a worker's machine may move."),
        key(
            "timeout",
            Kind::Duration,
            "How long registries are waited for with one image; longer while bytes flow (10m).",
        ),
        key(
            "report",
            Kind::Either(&[Kind::Text, Kind::Section(&REPORT)]),
            "Where a run's report goes: a .txt, .json, .md or .html file.",
        ),
        key("notify", Kind::Section(&NOTIFY), "Who is told when a batch has ended."),
        key("serve", Kind::Section(&SERVE), "How `imgsync serve` answers."),
    ],
};

pub(super) static CLUSTER: Section = Section {
    title: "`cluster`",
    keys: &[
        key("broker", ADDRESS_OR_URL, "RabbitMQ: amqp:// or amqps://."),
        key("store", ADDRESS_OR_URL, "Redis or Valkey: redis:// or rediss://."),
        key(
            "key",
            Kind::Secret,
            "Messages, plans, options and provenance are authenticated with it, and others refused; the same on all machines.",
        ),
        key(
            "ca",
            Kind::Several(&Kind::Text),
            "Certificates to trust for amqps and rediss besides the system's: files or PEM.",
        ),
    ],
};

/// URL and credential of a server.
pub(super) static ADDRESS: Section = Section {
    title: "an address",
    keys: &[
        key("url", Kind::Url, "Where it is."),
        key("username", Kind::Text, "The user there."),
        key(
            "password",
            Kind::Secret,
            "The user's password, of any characters; in the URL itself it is percent-encoded.",
        ),
    ],
};

const ADDRESS_OR_URL: Kind = Kind::Either(&[Kind::Url, Kind::Section(&ADDRESS)]);

pub(super) static REGISTRY: Section = Section {
    title: "a registry",
    keys: &[
        key("username", Kind::Text, "The user."),
        key("password", Kind::Secret, "The user's password or access token."),
        key("identity_token", Kind::Secret, "A refresh token in place of user and password."),
        key(
            "credentials",
            Kind::List(&Kind::Section(&CREDENTIAL)),
            "Several accounts, for pulling only: their limits add up.",
        ),
        key("endpoint", Kind::Url, "Where the registry really is: a mirror, a pull-through cache, a test."),
        key("mirrors", Kind::Several(&Kind::Url), "Tried first, in this order, for pulling."),
        key(
            "listing",
            Kind::Text,
            "Whose API lists repositories and tags: auto (by the registry's name), registry (tags/list and _catalog), quay, hub, harbor or github.",
        ),
        key(
            "api",
            Kind::Url,
            "Where the vendor's own API is: needed where `endpoint` is set, or the API is on another host.",
        ),
        key(
            "proxy",
            ADDRESS_OR_URL,
            "A proxy for this registry: http://, https://, socks5:// or socks5h://, which resolves names for us.",
        ),
        key("tls", Kind::Flag, "`off` speaks plain HTTP. Loopback addresses do so without it."),
        key(
            "ca",
            Kind::Several(&Kind::Text),
            "Certificates to trust besides the system's: a file (PEM or DER), or PEM.",
        ),
        key("client_cert", Kind::Text, "A client certificate: a file, or PEM."),
        key("client_key", Kind::Secret, "The key of `client_cert`: a file, or PEM."),
        key("insecure", Kind::Flag, "Trusts any certificate."),
        key("http1", Kind::Flag, "Does not use HTTP/2."),
        key("allow_private", Kind::Flag, "Follows redirects and tokens to private addresses."),
        key(
            "allow_metadata",
            Kind::Several(&Kind::Text),
            "Addresses of a cloud's metadata service, such as 169.254.169.254, that the registry may have or lead to.",
        ),
        key(
            "requests_per_second",
            Kind::Number,
            "The pace that the registry accepts, of all processes of a cluster together; what is documented for it if left out.",
        ),
        key(
            "concurrency",
            Kind::Whole,
            "How many requests to it may be open at a time, by all processes of a cluster together.",
        ),
        key(
            "pull_reserve",
            Kind::Either(&[Kind::Whole, Kind::Text]),
            "How much of its quota of pulls is left to others: a number, or a part such as 5%.",
        ),
        key("bandwidth", Kind::Size, "Bytes of blobs a second, to it and from it each, of one process; such as 20MiB."),
        key("egress", Kind::Text, "A name for the address that limits of anonymous users are counted by."),
        key("create", Kind::Flag, "Makes what a push needs: repositories of ECR, projects of Harbor."),
        key("chunk", Kind::Size, "Uploads blobs in pieces of this size (PATCH), such as 10MiB."),
    ],
};

pub(super) static CREDENTIAL: Section = Section {
    title: "a credential",
    keys: &[
        key("username", Kind::Text, "The user."),
        key("password", Kind::Secret, "The user's password or access token."),
        key("identity_token", Kind::Secret, "A refresh token in place of user and password."),
    ],
};

const TO: Key = key("to", Kind::Several(&Kind::Text), "Where to: registry and path, or `oci:DIR`; one or several.");
const NAMING: Key = key(
    "naming",
    Kind::Text,
    "What targets are called: flat, keep, basename, full, original, or a template such as {{namespace}}/{{basename}}.",
);
const TAGS: Key = key("tags", Kind::Section(&TAG_RULES), "Which tags; all of them if left out.");
const PLATFORMS: Key = key(
    "platforms",
    Kind::Several(&Kind::Text),
    "Only these platforms: os/arch or os/arch/variant. All of them if left out.",
);
const SPARSE: Key = key(
    "sparse",
    Kind::Flag,
    "With `platforms`: the index stays as it is, and only those of its images are copied; for targets that take that.",
);
const FOREIGN_LAYERS: Key = key(
    "foreign_layers",
    Kind::Text,
    "keep: layers that live at URLs of their own stay there; copy: they are copied like others (keep).",
);
const REFERRERS: Key = key(
    "referrers",
    Kind::Either(&[Kind::Flag, Kind::List(&Kind::Text)]),
    "Whether signatures, SBOMs and other referrers come along (true), or those of which artifact types.",
);
const IMMUTABLE: Key = key(
    "immutable",
    Kind::Several(&Kind::Text),
    "Tags that never move (globs, or /…/): once copied they are not asked for again, and never overwritten.",
);
const BACKUP: Key = key(
    "backup",
    Kind::Text,
    "Keeps what an overwritten tag pointed to under another, such as {{tag}}-before-{{date}}; also {{time}}, {{digest}}.",
);
static SCHEDULES: &[Kind] = &[Kind::Text, Kind::Section(&SCHEDULE)];
const RULE_SCHEDULE: Key = key(
    "schedule",
    Kind::Either(SCHEDULES),
    "When `imgsync serve` runs it: a cron pattern (0 */6 * * *), or cron or every, with jitter and zone.",
);
const PRIORITY: Key = key(
    "priority",
    Kind::Text,
    "high, normal or low, compared with other batches on the same routes (normal); also run --priority.",
);
const VERIFY_EVERY: Key = key("verify_every", Kind::Duration, "As at the top, for this rule.");
const REFERRERS_EVERY: Key = key("referrers_every", Kind::Duration, "As at the top, for this rule.");

pub(super) static DEFAULTS: Section = Section {
    title: "`defaults`",
    keys: &[TO, NAMING, TAGS, PLATFORMS, SPARSE, FOREIGN_LAYERS, REFERRERS, IMMUTABLE, BACKUP, RULE_SCHEDULE, PRIORITY],
};

pub(super) static RULE: Section = Section {
    title: "a rule",
    keys: &[
        key(
            "name",
            Kind::Text,
            "What the rule is called in reports, metrics and the dashboard; what it reads if left out.",
        ),
        key(
            "preset",
            Kind::Either(&[Kind::Text, Kind::Map(&Kind::Section(&PRESET))]),
            "A known source by name, or by name with settings; `imgsync presets` lists them.",
        ),
        key(
            "from",
            Kind::Either(&[Kind::Text, Kind::Section(&FROM)]),
            "Source repositories: `**` stands for all below, `*` for one level; or `oci:DIR`.",
        ),
        TAGS,
        PLATFORMS,
        SPARSE,
        FOREIGN_LAYERS,
        TO,
        NAMING,
        REFERRERS,
        IMMUTABLE,
        BACKUP,
        key(
            "prune",
            Kind::Either(&[Kind::Flag, Kind::Section(&PRUNE)]),
            "Removes target tags that this rule made and its source has no more (off).",
        ),
        RULE_SCHEDULE,
        PRIORITY,
        VERIFY_EVERY,
        REFERRERS_EVERY,
    ],
};

pub(super) static FROM: Section = Section {
    title: "`from`",
    keys: &[
        key("repositories", Kind::Text, "Source repositories: `**` stands for all below, `*` for one level."),
        key(
            "exclude",
            Kind::Several(&Kind::Text),
            "Repositories of these that are left alone: host/team/broken, team/old/**, team/*-test.",
        ),
    ],
};

pub(super) static PRUNE: Section = Section {
    title: "`prune`",
    keys: &[
        key("keep_days", Kind::Text, "For how many days the source must have been without the tag (30)."),
        key("limit", Kind::Text, "The most that one run removes, in tags or as a part of those that were made (10%)."),
    ],
};

pub(super) static PRESET: Section = Section {
    title: "a preset",
    keys: &[key(
        "versions",
        Kind::Text,
        "Only what these versions need, as with `semver`; of presets that know what a version needs (kubeadm).",
    )],
};

pub(super) static TAG_RULES: Section = Section {
    title: "`tags`",
    keys: &[
        key("include", Kind::Several(&Kind::Text), "One of these must match: globs, or regular expressions as /…/."),
        key("exclude", Kind::Several(&Kind::Text), "None of these may match."),
        key("semver", Kind::Text, "Only versions in this range: >=1.20, ^1.2 || ~2.3, 1.x."),
        key(
            "newest",
            Kind::Either(&[Kind::Whole, Kind::Section(&NEWEST)]),
            "Only the newest N, by version (N of each variant such as -alpine) or by date.",
        ),
        key("since", Kind::Since, "Only what is not older: a day such as 2025-01-01, or a time ago such as 90d."),
        key("min", Kind::Whole, "Fails if fewer tags than this are left: better than to sync nothing."),
    ],
};

pub(super) static NEWEST: Section = Section {
    title: "`newest`",
    keys: &[key("count", Kind::Whole, "How many."), key("by", Kind::Text, "version or date.")],
};

pub(super) static REPORT: Section = Section {
    title: "`report`",
    keys: &[
        key("file", Kind::Text, "A .txt, .json, .md or .html file."),
        key("level", Kind::Whole, "1: totals; 2: what failed, too; 3: everything."),
        key("template", Kind::Text, "A template of your own (Jinja); docs/reports.md says what it is given."),
    ],
};

pub(super) static NOTIFY: Section = Section {
    title: "`notify`",
    keys: &[
        key("telegram", Kind::Section(&TELEGRAM), "A message with the report to a group."),
        key("webhook", Kind::Several(&Kind::Section(&WEBHOOK)), "A POST with JSON, or what a template makes."),
        key("slack", Kind::Several(&Kind::Section(&CHAT)), "A message by an incoming webhook of Slack."),
        key("wecom", Kind::Several(&Kind::Section(&CHAT)), "A message by a robot of a WeCom group."),
        key("feishu", Kind::Several(&Kind::Section(&SIGNED_CHAT)), "A message by a robot of a Feishu or Lark group."),
        key("dingtalk", Kind::Several(&Kind::Section(&SIGNED_CHAT)), "A message by a robot of a DingTalk group."),
        key("email", Kind::Several(&Kind::Section(&EMAIL)), "A mail with the report as a page."),
        key(
            "ping",
            Kind::Several(&Kind::Secret),
            "URLs that are asked after each batch in which all was done: whoever is not asked for too long raises the alarm.",
        ),
        key(
            "throttled",
            Kind::Duration,
            "Tell all but `ping` when a registry leaves a batch waiting for this long (1h).",
        ),
    ],
};

const ON: Key =
    key("on", Kind::Text, "always; changes: something was copied or failed; failure: not all is done (always).");

pub(super) static TELEGRAM: Section = Section {
    title: "`telegram`",
    keys: &[
        key("token", Kind::Secret, "The bot's token, as @BotFather gave it."),
        key("group", Kind::Text, "The chat: a number such as -1001234567890, or @name of a public one."),
        key("api", Kind::Url, "Where the Bot API is (https://api.telegram.org)."),
        ON,
    ],
};

pub(super) static WEBHOOK: Section = Section {
    title: "a webhook",
    keys: &[
        key("url", Kind::Secret, "Where to: http:// or https://. Only its host is ever shown."),
        key("headers", Kind::Map(&Kind::Secret), "Sent with it, such as authorization or content-type."),
        key(
            "template",
            Kind::Text,
            "A template of the body (Jinja), in place of JSON; docs/notifications.md says more.",
        ),
        key("secret", Kind::Secret, "Signs the body: the header x-imgsync-signature is sha256=HMAC-SHA256 in hex."),
        ON,
    ],
};

const CHAT_TEMPLATE: Key = key(
    "template",
    Kind::Text,
    "A template of the message (Jinja), in place of the report; docs/notifications.md says more.",
);

pub(super) static CHAT: Section = Section {
    title: "a chat",
    keys: &[key("url", Kind::Secret, "The webhook's URL. Only its host is ever shown."), CHAT_TEMPLATE, ON],
};

pub(super) static SIGNED_CHAT: Section = Section {
    title: "a robot",
    keys: &[
        key("url", Kind::Secret, "The robot's URL. Only its host is ever shown."),
        key("secret", Kind::Secret, "What messages are signed with, where the robot asks for that."),
        CHAT_TEMPLATE,
        ON,
    ],
};

pub(super) static EMAIL: Section = Section {
    title: "a mail",
    keys: &[
        key("server", Kind::Url, "smtps://host:465, or smtp://host:587, which turns to TLS before anything is said."),
        key("username", Kind::Text, "The user there."),
        key("password", Kind::Secret, "The user's password."),
        key(
            "ca",
            Kind::Several(&Kind::Text),
            "Certificates to trust besides the system's: a file (PEM or DER), or PEM.",
        ),
        key("from", Kind::Text, "Whom it is from: imgsync@example.com, or imgsync <imgsync@example.com>."),
        key("to", Kind::Several(&Kind::Text), "Whom it is for."),
        CHAT_TEMPLATE,
        ON,
    ],
};

pub(super) static SCHEDULE: Section = Section {
    title: "`schedule`",
    keys: &[
        key("cron", Kind::Text, "Minute, hour, day of month, month, day of week: 0 3 * * MON-FRI."),
        key("every", Kind::Duration, "So long after each other, such as 6h; at first, at once."),
        key("jitter", Kind::Duration, "Each time up to so much later, so that not all is begun at once."),
        key("zone", Kind::Text, "The time zone of `cron`, such as Asia/Shanghai (UTC)."),
    ],
};

pub(super) static SERVE: Section = Section {
    title: "`serve`",
    keys: &[
        key("listen", Kind::Text, "Address and port (127.0.0.1:8080)."),
        key(
            "token",
            Kind::Secret,
            "What changes need, and reading off loopback or through a proxy; one is made up if left out.",
        ),
        key(
            "hosts",
            Kind::Several(&Kind::Text),
            "Names that it is asked under besides its own address, such as that of a proxy in front of it.",
        ),
    ],
};

/// All sections, for naming the one of a misplaced key.
pub(super) static SECTIONS: [&Section; 21] = [
    &RULE,
    &REGISTRY,
    &TAG_RULES,
    &CONFIG,
    &DEFAULTS,
    &CLUSTER,
    &ADDRESS,
    &CREDENTIAL,
    &NEWEST,
    &REPORT,
    &NOTIFY,
    &TELEGRAM,
    &WEBHOOK,
    &CHAT,
    &SIGNED_CHAT,
    &EMAIL,
    &PRESET,
    &PRUNE,
    &FROM,
    &SCHEDULE,
    &SERVE,
];

/// Keys whose values are not secret, but stand beside a secret or are mistaken for one: messages do not show them.
const NEAR_SECRETS: [&str; 8] = ["username", "broker", "store", "proxy", "url", "ca", "client_cert", "client_key"];

/// Returns whether the value of a key of this name, in any section, is a secret or may be one by mistake.
pub(super) fn may_hold_secret(name: &str) -> bool {
    let is_secret = |key: &Key| key.name == name && matches!(key.kind, Kind::Secret | Kind::Several(Kind::Secret));
    NEAR_SECRETS.contains(&name) || SECTIONS.iter().any(|section| section.keys.iter().any(is_secret))
}

/// Returns the names of all keys whose values are secrets, or may be by mistake.
pub(super) fn secret_names() -> Vec<&'static str> {
    let keys = SECTIONS.iter().flat_map(|section| section.keys);
    let mut names: Vec<&'static str> = keys.map(|key| key.name).filter(|name| may_hold_secret(name)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Section {
    /// Suggests the key that was probably meant.
    pub(super) fn suggest(&self, written: &str) -> Option<&'static str> {
        // Comparing takes memory and time that grow with the length, and no key is half as long.
        if written.len() > 64 {
            return None;
        }
        let written = written.to_ascii_lowercase().replace('-', "_");
        self.keys
            .iter()
            .map(|key| (strsim::damerau_levenshtein(key.name, &written), key.name))
            .filter(|(distance, name)| *distance <= name.len().min(written.len()).div_ceil(3))
            .min_by_key(|(distance, _)| *distance)
            .map(|(_, name)| name)
    }

    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self.keys.iter().map(|key| key.name).collect();
        names.join(", ")
    }
}
