//! Table of all configuration keys, their types and descriptions. Reader, messages and JSON Schema use it, so a key is
//! in all of them or in none.

/// A mapping with known keys.
#[derive(Debug)]
pub(super) struct ConfigSection {
    /// Name in messages.
    pub(super) title: &'static str,
    pub(super) keys: &'static [ConfigKey],
}

#[derive(Debug)]
pub(super) struct ConfigKey {
    pub(super) name: &'static str,
    pub(super) kind: ValueKind,
    pub(super) description: &'static str,
}

/// Type of a value.
#[derive(Debug)]
pub(super) enum ValueKind {
    Text,
    /// `true`, `on`, `yes` or `false`, `off`, `no`.
    Flag,
    Integer,
    Number,
    Duration,
    /// A date, a timestamp or an age.
    Since,
    Size,
    Url,
    Secret,
    Section(&'static ConfigSection),
    List(&'static ValueKind),
    /// One value, or a list of them.
    OneOrMany(&'static ValueKind),
    /// A mapping with user-defined keys.
    Map(&'static ValueKind),
    Either(&'static [ValueKind]),
}

const fn key(name: &'static str, kind: ValueKind, description: &'static str) -> ConfigKey {
    ConfigKey { name, kind, description }
}

pub(super) static CONFIG: ConfigSection = ConfigSection {
    title: "the configuration",
    keys: &[
        key(
            "cluster",
            ValueKind::Section(&CLUSTER),
            "Broker and store of a cluster. Without it, all is done in one process.",
        ),
        key(
            "registries",
            ValueKind::Map(&ValueKind::Section(&REGISTRY)),
            "Registries by host (and port): how to reach them and who is asking.",
        ),
        key("defaults", ValueKind::Section(&DEFAULTS), "What rules say where they do not say it themselves."),
        key("rules", ValueKind::List(&ValueKind::Section(&RULE)), "What is copied where."),
        key(
            "verify_every",
            ValueKind::Duration,
            "How long a target tag is believed to be there before the target is asked again (7d).",
        ),
        key("referrers_every", ValueKind::Duration, "How often an unchanged image is asked for new referrers (7d)."),
        key("keep", ValueKind::Duration, "How long finished batches are kept (90d)."),
        key("concurrency", ValueKind::Integer, "How many images are copied at a time (20)."),
        key(
            "if_running",
            ValueKind::Text,
            "What `imgsync run` does while a batch of the same rules is running: wait, join, supersede or fail (wait).",
        ),
        key("bandwidth", ValueKind::Size, "Bytes of blobs a second, in and out each, of one process; such as 20MiB."),
        key(
            "traffic",
            ValueKind::Size,
            "Bytes of blobs a month, in and out together, that a worker's machine may move.",
        ),
        key(
            "timeout",
            ValueKind::Duration,
            "How long registries are waited for with one image; longer while bytes flow (10m).",
        ),
        key(
            "report",
            ValueKind::Either(&[ValueKind::Text, ValueKind::Section(&REPORT)]),
            "Where a run's report goes: a .txt, .json, .md or .html file.",
        ),
        key("notify", ValueKind::Section(&NOTIFY), "Who is told when a batch has ended."),
        key("serve", ValueKind::Section(&SERVE), "How `imgsync serve` answers."),
    ],
};

pub(super) static CLUSTER: ConfigSection = ConfigSection {
    title: "`cluster`",
    keys: &[
        key("broker", ADDRESS_OR_URL, "RabbitMQ: amqp:// or amqps://."),
        key("store", ADDRESS_OR_URL, "Redis or Valkey: redis:// or rediss://."),
        key(
            "key",
            ValueKind::Secret,
            "Messages, plans, options and provenance are authenticated with it, and others refused; the same on all machines.",
        ),
        key(
            "ca",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Certificates to trust for amqps and rediss besides the system's: files or PEM.",
        ),
    ],
};

/// URL and credential of a server.
pub(super) static ADDRESS: ConfigSection = ConfigSection {
    title: "an address",
    keys: &[
        key("url", ValueKind::Url, "Where it is."),
        key("username", ValueKind::Text, "The user there."),
        key(
            "password",
            ValueKind::Secret,
            "The user's password, of any characters; in the URL itself it is percent-encoded.",
        ),
    ],
};

const ADDRESS_OR_URL: ValueKind = ValueKind::Either(&[ValueKind::Url, ValueKind::Section(&ADDRESS)]);

pub(super) static REGISTRY: ConfigSection = ConfigSection {
    title: "a registry",
    keys: &[
        key("username", ValueKind::Text, "The user."),
        key("password", ValueKind::Secret, "The user's password or access token."),
        key("identity_token", ValueKind::Secret, "A refresh token in place of user and password."),
        key(
            "credentials",
            ValueKind::List(&ValueKind::Section(&CREDENTIAL)),
            "Several accounts, for pulling only: their limits add up.",
        ),
        key("endpoint", ValueKind::Url, "Where the registry really is: a mirror, a pull-through cache, a test."),
        key("mirrors", ValueKind::OneOrMany(&ValueKind::Url), "Tried first, in this order, for pulling."),
        key(
            "listing",
            ValueKind::Text,
            "Whose API lists repositories and tags: auto (by the registry's name), registry (tags/list and _catalog), quay, hub, harbor or github.",
        ),
        key(
            "api",
            ValueKind::Url,
            "Where the vendor's own API is: needed where `endpoint` is set, or the API is on another host.",
        ),
        key(
            "proxy",
            ADDRESS_OR_URL,
            "A proxy for this registry: http://, https://, socks5:// or socks5h://, which resolves names for us.",
        ),
        key("tls", ValueKind::Flag, "`off` speaks plain HTTP. Loopback addresses do so without it."),
        key(
            "ca",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Certificates to trust besides the system's: a file (PEM or DER), or PEM.",
        ),
        key("client_cert", ValueKind::Text, "A client certificate: a file, or PEM."),
        key("client_key", ValueKind::Secret, "The key of `client_cert`: a file, or PEM."),
        key("insecure", ValueKind::Flag, "Trusts any certificate."),
        key("http1", ValueKind::Flag, "Does not use HTTP/2."),
        key("allow_private", ValueKind::Flag, "Follows redirects and tokens to private addresses."),
        key(
            "allow_metadata",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Addresses of a cloud's metadata service, such as 169.254.169.254, that the registry may have or lead to.",
        ),
        key(
            "requests_per_second",
            ValueKind::Number,
            "The pace that the registry accepts, of all processes of a cluster together; what is documented for it if left out.",
        ),
        key(
            "concurrency",
            ValueKind::Integer,
            "How many requests to it may be open at a time, by all processes of a cluster together.",
        ),
        key(
            "pull_reserve",
            ValueKind::Either(&[ValueKind::Integer, ValueKind::Text]),
            "How much of its quota of pulls is left to others: a number, or a part such as 5%.",
        ),
        key(
            "bandwidth",
            ValueKind::Size,
            "Bytes of blobs a second, to it and from it each, of one process; such as 20MiB.",
        ),
        key("egress", ValueKind::Text, "A name for the address that limits of anonymous users are counted by."),
        key("create", ValueKind::Flag, "Makes what a push needs: repositories of ECR, projects of Harbor."),
        key("chunk", ValueKind::Size, "Uploads blobs in pieces of this size (PATCH), such as 10MiB."),
    ],
};

pub(super) static CREDENTIAL: ConfigSection = ConfigSection {
    title: "a credential",
    keys: &[
        key("username", ValueKind::Text, "The user."),
        key("password", ValueKind::Secret, "The user's password or access token."),
        key("identity_token", ValueKind::Secret, "A refresh token in place of user and password."),
    ],
};

const TO: ConfigKey =
    key("to", ValueKind::OneOrMany(&ValueKind::Text), "Where to: registry and path, or `oci:DIR`; one or several.");
const NAMING: ConfigKey = key(
    "naming",
    ValueKind::Text,
    "What targets are called: flat, keep, basename, full, original, or a template such as {{namespace}}/{{basename}}.",
);
const TAGS: ConfigKey = key("tags", ValueKind::Section(&TAG_RULES), "Which tags; all of them if left out.");
const PLATFORMS: ConfigKey = key(
    "platforms",
    ValueKind::OneOrMany(&ValueKind::Text),
    "Only these platforms: os/arch or os/arch/variant. All of them if left out.",
);
const SPARSE: ConfigKey = key(
    "sparse",
    ValueKind::Flag,
    "With `platforms`: the index stays as it is, and only those of its images are copied; for targets that take that.",
);
const FOREIGN_LAYERS: ConfigKey = key(
    "foreign_layers",
    ValueKind::Text,
    "keep: layers that live at URLs of their own stay there; copy: they are copied like others (keep).",
);
const REFERRERS: ConfigKey = key(
    "referrers",
    ValueKind::Either(&[ValueKind::Flag, ValueKind::List(&ValueKind::Text)]),
    "Whether signatures, SBOMs and other referrers come along (true), or those of which artifact types.",
);
const IMMUTABLE: ConfigKey = key(
    "immutable",
    ValueKind::OneOrMany(&ValueKind::Text),
    "Tags that never move (globs, or /…/): once copied they are not asked for again, and never overwritten.",
);
const BACKUP: ConfigKey = key(
    "backup",
    ValueKind::Text,
    "Keeps what an overwritten tag pointed to under another, such as {{tag}}-before-{{date}}; also {{time}}, {{digest}}.",
);
static SCHEDULES: &[ValueKind] = &[ValueKind::Text, ValueKind::Section(&SCHEDULE)];
const RULE_SCHEDULE: ConfigKey = key(
    "schedule",
    ValueKind::Either(SCHEDULES),
    "When `imgsync serve` runs it: a cron pattern (0 */6 * * *), or cron or every, with jitter and zone.",
);
const PRIORITY: ConfigKey = key(
    "priority",
    ValueKind::Text,
    "high, normal or low, compared with other batches on the same routes (normal); also run --priority.",
);
const VERIFY_EVERY: ConfigKey = key("verify_every", ValueKind::Duration, "As at the top, for this rule.");
const REFERRERS_EVERY: ConfigKey = key("referrers_every", ValueKind::Duration, "As at the top, for this rule.");

pub(super) static DEFAULTS: ConfigSection = ConfigSection {
    title: "`defaults`",
    keys: &[TO, NAMING, TAGS, PLATFORMS, SPARSE, FOREIGN_LAYERS, REFERRERS, IMMUTABLE, BACKUP, RULE_SCHEDULE, PRIORITY],
};

pub(super) static RULE: ConfigSection = ConfigSection {
    title: "a rule",
    keys: &[
        key(
            "name",
            ValueKind::Text,
            "What the rule is called in reports, metrics and the dashboard; what it reads if left out.",
        ),
        key(
            "preset",
            ValueKind::Either(&[ValueKind::Text, ValueKind::Map(&ValueKind::Section(&PRESET))]),
            "A known source by name, or by name with settings; `imgsync presets` lists them.",
        ),
        key(
            "from",
            ValueKind::Either(&[ValueKind::Text, ValueKind::Section(&FROM)]),
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
            ValueKind::Either(&[ValueKind::Flag, ValueKind::Section(&PRUNE)]),
            "Removes target tags that this rule made and its source has no more (off).",
        ),
        RULE_SCHEDULE,
        PRIORITY,
        VERIFY_EVERY,
        REFERRERS_EVERY,
    ],
};

pub(super) static FROM: ConfigSection = ConfigSection {
    title: "`from`",
    keys: &[
        key("repositories", ValueKind::Text, "Source repositories: `**` stands for all below, `*` for one level."),
        key(
            "exclude",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Repositories of these that are left alone: host/team/broken, team/old/**, team/*-test.",
        ),
    ],
};

pub(super) static PRUNE: ConfigSection = ConfigSection {
    title: "`prune`",
    keys: &[
        key("keep_days", ValueKind::Text, "For how many days the source must have been without the tag (30)."),
        key(
            "limit",
            ValueKind::Text,
            "The most that one run removes, in tags or as a part of those that were made (10%).",
        ),
    ],
};

pub(super) static PRESET: ConfigSection = ConfigSection {
    title: "a preset",
    keys: &[key(
        "versions",
        ValueKind::Text,
        "Only what these versions need, as with `semver`; of presets that know what a version needs (kubeadm).",
    )],
};

pub(super) static TAG_RULES: ConfigSection = ConfigSection {
    title: "`tags`",
    keys: &[
        key(
            "include",
            ValueKind::OneOrMany(&ValueKind::Text),
            "One of these must match: globs, or regular expressions as /…/.",
        ),
        key("exclude", ValueKind::OneOrMany(&ValueKind::Text), "None of these may match."),
        key("semver", ValueKind::Text, "Only versions in this range: >=1.20, ^1.2 || ~2.3, 1.x."),
        key(
            "newest",
            ValueKind::Either(&[ValueKind::Integer, ValueKind::Section(&NEWEST)]),
            "Only the newest N, by version (N of each variant such as -alpine) or by date.",
        ),
        key("since", ValueKind::Since, "Only what is not older: a day such as 2025-01-01, or a time ago such as 90d."),
        key("min", ValueKind::Integer, "Fails if fewer tags than this are left: better than to sync nothing."),
    ],
};

pub(super) static NEWEST: ConfigSection = ConfigSection {
    title: "`newest`",
    keys: &[key("count", ValueKind::Integer, "How many."), key("by", ValueKind::Text, "version or date.")],
};

pub(super) static REPORT: ConfigSection = ConfigSection {
    title: "`report`",
    keys: &[
        key("file", ValueKind::Text, "A .txt, .json, .md or .html file."),
        key("level", ValueKind::Integer, "1: totals; 2: what failed, too; 3: everything."),
        key("template", ValueKind::Text, "A template of your own (Jinja); docs/reports.md says what it is given."),
    ],
};

pub(super) static NOTIFY: ConfigSection = ConfigSection {
    title: "`notify`",
    keys: &[
        key("telegram", ValueKind::Section(&TELEGRAM), "A message with the report to a group."),
        key(
            "webhook",
            ValueKind::OneOrMany(&ValueKind::Section(&WEBHOOK)),
            "A POST with JSON, or what a template makes.",
        ),
        key("slack", ValueKind::OneOrMany(&ValueKind::Section(&CHAT)), "A message by an incoming webhook of Slack."),
        key("wecom", ValueKind::OneOrMany(&ValueKind::Section(&CHAT)), "A message by a robot of a WeCom group."),
        key(
            "feishu",
            ValueKind::OneOrMany(&ValueKind::Section(&SIGNED_CHAT)),
            "A message by a robot of a Feishu or Lark group.",
        ),
        key(
            "dingtalk",
            ValueKind::OneOrMany(&ValueKind::Section(&SIGNED_CHAT)),
            "A message by a robot of a DingTalk group.",
        ),
        key("email", ValueKind::OneOrMany(&ValueKind::Section(&EMAIL)), "A mail with the report as a page."),
        key(
            "ping",
            ValueKind::OneOrMany(&ValueKind::Secret),
            "URLs that are asked after each batch in which all was done: whoever is not asked for too long raises the alarm.",
        ),
        key(
            "throttled",
            ValueKind::Duration,
            "Tell all but `ping` when a registry leaves a batch waiting for this long (1h).",
        ),
    ],
};

const ON: ConfigKey =
    key("on", ValueKind::Text, "always; changes: something was copied or failed; failure: not all is done (always).");

pub(super) static TELEGRAM: ConfigSection = ConfigSection {
    title: "`telegram`",
    keys: &[
        key("token", ValueKind::Secret, "The bot's token, as @BotFather gave it."),
        key("group", ValueKind::Text, "The chat: a number such as -1001234567890, or @name of a public one."),
        key("api", ValueKind::Url, "Where the Bot API is (https://api.telegram.org)."),
        ON,
    ],
};

pub(super) static WEBHOOK: ConfigSection = ConfigSection {
    title: "a webhook",
    keys: &[
        key("url", ValueKind::Secret, "Where to: http:// or https://. Only its host is ever shown."),
        key("headers", ValueKind::Map(&ValueKind::Secret), "Sent with it, such as authorization or content-type."),
        key(
            "template",
            ValueKind::Text,
            "A template of the body (Jinja), in place of JSON; docs/notifications.md says more.",
        ),
        key(
            "secret",
            ValueKind::Secret,
            "Signs the body: the header x-imgsync-signature is sha256=HMAC-SHA256 in hex.",
        ),
        ON,
    ],
};

const CHAT_TEMPLATE: ConfigKey = key(
    "template",
    ValueKind::Text,
    "A template of the message (Jinja), in place of the report; docs/notifications.md says more.",
);

pub(super) static CHAT: ConfigSection = ConfigSection {
    title: "a chat",
    keys: &[key("url", ValueKind::Secret, "The webhook's URL. Only its host is ever shown."), CHAT_TEMPLATE, ON],
};

pub(super) static SIGNED_CHAT: ConfigSection = ConfigSection {
    title: "a robot",
    keys: &[
        key("url", ValueKind::Secret, "The robot's URL. Only its host is ever shown."),
        key("secret", ValueKind::Secret, "What messages are signed with, where the robot asks for that."),
        CHAT_TEMPLATE,
        ON,
    ],
};

pub(super) static EMAIL: ConfigSection = ConfigSection {
    title: "a mail",
    keys: &[
        key(
            "server",
            ValueKind::Url,
            "smtps://host:465, or smtp://host:587, which turns to TLS before anything is said.",
        ),
        key("username", ValueKind::Text, "The user there."),
        key("password", ValueKind::Secret, "The user's password."),
        key(
            "ca",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Certificates to trust besides the system's: a file (PEM or DER), or PEM.",
        ),
        key("from", ValueKind::Text, "Whom it is from: imgsync@example.com, or imgsync <imgsync@example.com>."),
        key("to", ValueKind::OneOrMany(&ValueKind::Text), "Whom it is for."),
        CHAT_TEMPLATE,
        ON,
    ],
};

pub(super) static SCHEDULE: ConfigSection = ConfigSection {
    title: "`schedule`",
    keys: &[
        key("cron", ValueKind::Text, "Minute, hour, day of month, month, day of week: 0 3 * * MON-FRI."),
        key("every", ValueKind::Duration, "So long after each other, such as 6h; at first, at once."),
        key("jitter", ValueKind::Duration, "Each time up to so much later, so that not all is begun at once."),
        key("zone", ValueKind::Text, "The time zone of `cron`, such as Asia/Shanghai (UTC)."),
    ],
};

pub(super) static SERVE: ConfigSection = ConfigSection {
    title: "`serve`",
    keys: &[
        key("listen", ValueKind::Text, "Address and port (127.0.0.1:8080)."),
        key(
            "token",
            ValueKind::Secret,
            "What changes need, and reading off loopback or through a proxy; one is made up if left out.",
        ),
        key(
            "hosts",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Names that it is asked under besides its own address, such as that of a proxy in front of it.",
        ),
    ],
};

/// All sections, for naming the one of a misplaced key.
pub(super) static SECTIONS: [&ConfigSection; 21] = [
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
    let is_secret = |key: &ConfigKey| {
        key.name == name && matches!(key.kind, ValueKind::Secret | ValueKind::OneOrMany(ValueKind::Secret))
    };
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

impl ConfigSection {
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

    pub(super) fn key_names(&self) -> String {
        let names: Vec<&str> = self.keys.iter().map(|key| key.name).collect();
        names.join(", ")
    }
}
