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
            "Broker and store of a cluster. Without it, one process does everything.",
        ),
        key(
            "registries",
            ValueKind::Map(&ValueKind::Section(&REGISTRY)),
            "Connection settings, credentials and limits by registry host (and port).",
        ),
        key("defaults", ValueKind::Section(&DEFAULTS), "Defaults for the keys of rules."),
        key(
            "rules",
            ValueKind::List(&ValueKind::Section(&RULE)),
            "Which repositories and tags to mirror, and where to.",
        ),
        key(
            "verify_every",
            ValueKind::Duration,
            "How long a cached target tag is trusted before it is checked again (7d).",
        ),
        key("referrers_every", ValueKind::Duration, "How often unchanged images are checked for new referrers (7d)."),
        key("keep", ValueKind::Duration, "Retention of finished batches (90d)."),
        key("concurrency", ValueKind::Integer, "Images copied concurrently (20)."),
        key(
            "if_running",
            ValueKind::Text,
            "What `imgsync run` does while a batch of the same rules is running: wait, join, supersede or fail (wait).",
        ),
        key(
            "bandwidth",
            ValueKind::Size,
            "Bandwidth limit of a process in bytes per second, for each direction; such as 20MiB.",
        ),
        key(
            "monthly_quota",
            ValueKind::Size,
            "Monthly transfer quota of a worker's machine in bytes, in and out together.",
        ),
        key("timeout", ValueKind::Duration, "Timeout of one image; extended while bytes flow (10m)."),
        key(
            "report",
            ValueKind::Either(&[ValueKind::Text, ValueKind::Section(&REPORT)]),
            "File for the report of a run: .txt, .json, .md or .html.",
        ),
        key("notify", ValueKind::Section(&NOTIFY), "Notification targets."),
        key("serve", ValueKind::Section(&SERVE), "HTTP settings of `imgsync serve`."),
        key(
            "hooks",
            ValueKind::Map(&ValueKind::Section(&HOOK)),
            "Notifications of registries that `imgsync serve` receives at /hooks/NAME: pushed tags are copied at once.",
        ),
    ],
};

pub(super) static CLUSTER: ConfigSection = ConfigSection {
    title: "`cluster`",
    keys: &[
        key(
            "broker",
            ValueKind::OneOrMany(&ADDRESS_OR_URL),
            "RabbitMQ: amqp:// or amqps://; a list names the nodes of a cluster.",
        ),
        key(
            "store",
            ADDRESS_OR_URL,
            "Redis or Valkey: redis:// or rediss://; with Sentinels: \
             redis+sentinel://:PASSWORD@HOST:26379,HOST:26379/MASTER or rediss+sentinel://.",
        ),
        key("sentinel_username", ValueKind::Text, "User of the Sentinels, if they have ACL users."),
        key(
            "sentinel_password",
            ValueKind::Secret,
            "Password of the Sentinels, if they require one; that of the servers belongs into `store`.",
        ),
        key(
            "key",
            ValueKind::Secret,
            "Shared key that authenticates messages, plans, options and provenance; the same on all machines.",
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
        key("url", ValueKind::Url, "The URL."),
        key("username", ValueKind::Text, "The user name."),
        key("password", ValueKind::Secret, "The password; percent-encode it only inside the URL."),
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
            ValueKind::Either(&[ValueKind::Text, ValueKind::List(&ValueKind::Section(&CREDENTIAL))]),
            "Where credentials come from: aws, gcp or azure (the identity of the machine, before docker's files), auto \
             (docker's files, else that of the cloud of the registry's name) or none. A list holds additional accounts for \
             pulling; their limits add up.",
        ),
        key(
            "endpoint",
            ValueKind::Url,
            "URL to use instead of the registry's own: a mirror, a pull-through cache, a test.",
        ),
        key("mirrors", ValueKind::OneOrMany(&ValueKind::Url), "Mirrors to pull from first, in this order."),
        key(
            "listing",
            ValueKind::Text,
            "API for listing repositories and tags: auto (by the registry's name), registry (tags/list and _catalog), \
             quay, hub, harbor or github.",
        ),
        key(
            "api",
            ValueKind::Url,
            "URL of the provider's API; required if `endpoint` is set or the API is on another host.",
        ),
        key(
            "proxy",
            ADDRESS_OR_URL,
            "Proxy for this registry: http://, https://, socks5:// or socks5h:// (the proxy resolves names).",
        ),
        key(
            "tls",
            ValueKind::Flag,
            "`on`: TLS; `off`: plain HTTP, the default for loopback addresses without `ca`, `client_cert` and \
             `insecure`.",
        ),
        key(
            "ca",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Certificates to trust besides the system's: a file (PEM or DER), or PEM.",
        ),
        key("client_cert", ValueKind::Text, "A client certificate: a file, or PEM."),
        key("client_key", ValueKind::Secret, "The key of `client_cert`: a file, or PEM."),
        key("insecure", ValueKind::Flag, "Trusts any certificate."),
        key("http1", ValueKind::Flag, "Uses only HTTP/1.1."),
        key("allow_private", ValueKind::Flag, "Allows redirects and token services at private addresses."),
        key(
            "allow_metadata",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Cloud metadata addresses, such as 169.254.169.254, that the registry may resolve or redirect to.",
        ),
        key(
            "requests_per_second",
            ValueKind::Number,
            "Rate limit in requests per second, shared by all processes of a cluster; by default the registry's \
             documented limit.",
        ),
        key(
            "concurrency",
            ValueKind::Integer,
            "Concurrency limit in open requests, shared by all processes of a cluster.",
        ),
        key(
            "pull_reserve",
            ValueKind::Either(&[ValueKind::Integer, ValueKind::Text]),
            "Part of the pull quota to leave unused: a number of pulls, or a percentage such as 5%.",
        ),
        key(
            "bandwidth",
            ValueKind::Size,
            "Bandwidth limit of a process for this registry in bytes per second, for each direction; such as 20MiB.",
        ),
        key(
            "egress",
            ValueKind::Text,
            "Name of the public IP address of this machine; anonymous requests are limited per name.",
        ),
        key("create", ValueKind::Flag, "Creates missing ECR repositories and Harbor projects on push."),
        key("chunk", ValueKind::Size, "Chunk size for blob uploads (PATCH), such as 10MiB."),
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

const TO: ConfigKey = key(
    "to",
    ValueKind::OneOrMany(&ValueKind::Text),
    "Targets: registry and path, `oci:DIR`, `oci-archive:FILE` or `docker-archive:FILE`; one or several.",
);
const NAMING: ConfigKey = key(
    "naming",
    ValueKind::Text,
    "Naming of target repositories: flat, keep, basename, full, original, or a template such as \
     {{namespace}}/{{basename}}.",
);
const TAGS: ConfigKey = key("tags", ValueKind::Section(&TAG_RULES), "Tag filter; all tags by default.");
const PLATFORMS: ConfigKey = key(
    "platforms",
    ValueKind::OneOrMany(&ValueKind::Text),
    "Platforms to copy: os/arch or os/arch/variant; all by default.",
);
const SPARSE: ConfigKey = key(
    "sparse",
    ValueKind::Flag,
    "With `platforms`: copies the complete index, but only the selected images, for targets that allow it.",
);
const FOREIGN_LAYERS: ConfigKey = key(
    "foreign_layers",
    ValueKind::Text,
    "Layers with external URLs: keep only the reference, or copy them like other layers (keep).",
);
const REFERRERS: ConfigKey = key(
    "referrers",
    ValueKind::Either(&[ValueKind::Flag, ValueKind::List(&ValueKind::Text)]),
    "Whether to copy signatures, SBOMs and other referrers (true), or a list of artifact types.",
);
const IMMUTABLE: ConfigKey = key(
    "immutable",
    ValueKind::OneOrMany(&ValueKind::Text),
    "Tags that never move (globs, or /…/): once copied, they are neither checked again nor overwritten.",
);
const BACKUP: ConfigKey = key(
    "backup",
    ValueKind::Text,
    "Tag for the previous image of an overwritten tag, such as {{tag}}-before-{{date}}; also {{time}}, {{digest}}.",
);
static POLICIES: &[ValueKind] = &[ValueKind::Flag, ValueKind::Section(&POLICY)];
const RULE_POLICY: ConfigKey = key(
    "policy",
    ValueKind::Either(POLICIES),
    "What an image must be before it is copied: signed, not too old, not too large …; off, if `defaults` has one.",
);
static SCHEDULES: &[ValueKind] = &[ValueKind::Text, ValueKind::Section(&SCHEDULE)];
const RULE_SCHEDULE: ConfigKey = key(
    "schedule",
    ValueKind::Either(SCHEDULES),
    "Schedule for `imgsync serve`: a cron pattern (0 */6 * * *), or a mapping with cron or every, jitter and zone.",
);
const PRIORITY: ConfigKey = key(
    "priority",
    ValueKind::Text,
    "high, normal or low, relative to other batches on the same routes (normal); also run --priority.",
);
const VERIFY_EVERY: ConfigKey = key("verify_every", ValueKind::Duration, "As at the top level, for this rule.");
const REFERRERS_EVERY: ConfigKey = key("referrers_every", ValueKind::Duration, "As at the top level, for this rule.");

pub(super) static DEFAULTS: ConfigSection = ConfigSection {
    title: "`defaults`",
    keys: &[
        TO,
        NAMING,
        TAGS,
        PLATFORMS,
        SPARSE,
        FOREIGN_LAYERS,
        REFERRERS,
        IMMUTABLE,
        BACKUP,
        RULE_POLICY,
        RULE_SCHEDULE,
        PRIORITY,
    ],
};

pub(super) static RULE: ConfigSection = ConfigSection {
    title: "a rule",
    keys: &[
        key("name", ValueKind::Text, "Name of the rule in reports, metrics and the dashboard; its source by default."),
        key(
            "preset",
            ValueKind::Either(&[ValueKind::Text, ValueKind::Map(&ValueKind::Section(&PRESET))]),
            "A known source by name, or by name with settings; `imgsync presets` lists them.",
        ),
        key(
            "from",
            ValueKind::Either(&[ValueKind::Text, ValueKind::Section(&FROM)]),
            "Source repositories: `**` matches all levels, `*` one level; or `oci:DIR`, `oci-archive:FILE`, `docker-archive:FILE`.",
        ),
        key(
            "images",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Files and folders that name the images: manifests, compose files, Dockerfiles, lists; read at each run.",
        ),
        key(
            "digests",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Images of the repository in `from`, by digest; each is copied under the tag digest-sha256-<hex>.",
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
        RULE_POLICY,
        key(
            "prune",
            ValueKind::Either(&[ValueKind::Flag, ValueKind::Section(&PRUNE)]),
            "Removes target tags that this rule created and that are gone from the source (off).",
        ),
        RULE_SCHEDULE,
        PRIORITY,
        VERIFY_EVERY,
        REFERRERS_EVERY,
    ],
};

pub(super) static POLICY: ConfigSection = ConfigSection {
    title: "`policy`",
    keys: &[
        key("signed", ValueKind::Section(&SIGNED), "Signatures of cosign that the image must have."),
        key(
            "max_age",
            ValueKind::Duration,
            "Maximum age of an image when it is copied, by the `created` of its config or its annotations.",
        ),
        key("max_size", ValueKind::Size, "Maximum size of all blobs of the copied platforms together, such as 2GiB."),
        key(
            "labels",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Labels that the config of every copied platform must have: NAME for any value, or NAME=VALUE.",
        ),
        key(
            "requires_platforms",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Platforms that the image must be available for.",
        ),
    ],
};

pub(super) static SIGNED: ConfigSection = ConfigSection {
    title: "`signed`",
    keys: &[
        key(
            "keys",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Files with public keys, such as cosign.pub; read when the configuration is read.",
        ),
        key("need", ValueKind::Text, "any: one of the keys has signed; all: each of them has (any)."),
    ],
};

pub(super) static FROM: ConfigSection = ConfigSection {
    title: "`from`",
    keys: &[
        key("repositories", ValueKind::Text, "Source repositories: `**` matches all levels, `*` one level."),
        key(
            "exclude",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Repositories to exclude: host/team/broken, team/old/**, team/*-test.",
        ),
    ],
};

pub(super) static PRUNE: ConfigSection = ConfigSection {
    title: "`prune`",
    keys: &[
        key("keep_days", ValueKind::Text, "Days that a tag must be gone from the source (30)."),
        key(
            "limit",
            ValueKind::Text,
            "Maximum number of tags that one run removes, or a percentage of the tags that the rule created (10%).",
        ),
    ],
};

pub(super) static PRESET: ConfigSection = ConfigSection {
    title: "a preset",
    keys: &[key(
        "versions",
        ValueKind::Text,
        "Version range, as with `semver`; for presets that map versions to images (kubeadm).",
    )],
};

pub(super) static TAG_RULES: ConfigSection = ConfigSection {
    title: "`tags`",
    keys: &[
        key(
            "include",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Tags to include: globs, or regular expressions as /…/.",
        ),
        key("exclude", ValueKind::OneOrMany(&ValueKind::Text), "Tags to exclude."),
        key("semver", ValueKind::Text, "Version range: >=1.20, ^1.2 || ~2.3, 1.x."),
        key(
            "newest",
            ValueKind::Either(&[ValueKind::Integer, ValueKind::Section(&NEWEST)]),
            "Only the newest N, by version (N of each family, such as -alpine) or by date.",
        ),
        key("since", ValueKind::Since, "Oldest creation date: a day such as 2025-01-01, or an age such as 90d."),
        key("min", ValueKind::Integer, "Minimum number of selected tags; fewer is an error."),
    ],
};

pub(super) static NEWEST: ConfigSection = ConfigSection {
    title: "`newest`",
    keys: &[key("count", ValueKind::Integer, "Number of tags."), key("by", ValueKind::Text, "version or date.")],
};

pub(super) static REPORT: ConfigSection = ConfigSection {
    title: "`report`",
    keys: &[
        key("file", ValueKind::Text, "A .txt, .json, .md or .html file."),
        key("level", ValueKind::Integer, "1: totals; 2: also failures; 3: everything."),
        key("template", ValueKind::Text, "Jinja template; docs/reference/reports.md lists its variables."),
    ],
};

pub(super) static NOTIFY: ConfigSection = ConfigSection {
    title: "`notify`",
    keys: &[
        key("telegram", ValueKind::Section(&TELEGRAM), "A message with the report to a group."),
        key(
            "webhook",
            ValueKind::OneOrMany(&ValueKind::Section(&WEBHOOK)),
            "A POST with JSON, or with the output of a template.",
        ),
        key("slack", ValueKind::OneOrMany(&ValueKind::Section(&CHAT)), "A message to a Slack incoming webhook."),
        key("wecom", ValueKind::OneOrMany(&ValueKind::Section(&CHAT)), "A message to a WeCom group bot."),
        key(
            "feishu",
            ValueKind::OneOrMany(&ValueKind::Section(&SIGNED_CHAT)),
            "A message to a Feishu or Lark group bot.",
        ),
        key("dingtalk", ValueKind::OneOrMany(&ValueKind::Section(&SIGNED_CHAT)), "A message to a DingTalk group bot."),
        key("email", ValueKind::OneOrMany(&ValueKind::Section(&EMAIL)), "A mail with the report as HTML."),
        key(
            "ping",
            ValueKind::OneOrMany(&ValueKind::Secret),
            "Dead man's switch URLs, requested after each successful batch.",
        ),
        key(
            "throttled",
            ValueKind::Duration,
            "Notify (all but `ping`) when a registry throttles a batch for this long (1h).",
        ),
    ],
};

const ON: ConfigKey = key(
    "on",
    ValueKind::Text,
    "always; changes: something was copied or failed; failure: the batch did not succeed (always).",
);

pub(super) static TELEGRAM: ConfigSection = ConfigSection {
    title: "`telegram`",
    keys: &[
        key("token", ValueKind::Secret, "The bot's token, as @BotFather gave it."),
        key("group", ValueKind::Text, "The chat: a number such as -1001234567890, or @name of a public one."),
        key("api", ValueKind::Url, "URL of the Bot API (https://api.telegram.org)."),
        ON,
    ],
};

pub(super) static WEBHOOK: ConfigSection = ConfigSection {
    title: "a webhook",
    keys: &[
        key("url", ValueKind::Secret, "The URL: http:// or https://. Only its host is ever shown."),
        key(
            "headers",
            ValueKind::Map(&ValueKind::Secret),
            "Additional request headers, such as authorization or content-type.",
        ),
        key(
            "template",
            ValueKind::Text,
            "Jinja template of the body, instead of JSON; see docs/how-to/notifications.md.",
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
    "Jinja template of the message, instead of the report; see docs/how-to/notifications.md.",
);

pub(super) static CHAT: ConfigSection = ConfigSection {
    title: "a chat",
    keys: &[key("url", ValueKind::Secret, "The webhook's URL. Only its host is ever shown."), CHAT_TEMPLATE, ON],
};

pub(super) static SIGNED_CHAT: ConfigSection = ConfigSection {
    title: "a bot",
    keys: &[
        key("url", ValueKind::Secret, "The bot's webhook URL. Only its host is ever shown."),
        key("secret", ValueKind::Secret, "Secret for signing messages, if the bot requires it."),
        CHAT_TEMPLATE,
        ON,
    ],
};

pub(super) static EMAIL: ConfigSection = ConfigSection {
    title: "a mail",
    keys: &[
        key("server", ValueKind::Url, "smtps://host:465, or smtp://host:587 (STARTTLS required)."),
        key("username", ValueKind::Text, "The user name."),
        key("password", ValueKind::Secret, "The user's password."),
        key(
            "ca",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Certificates to trust besides the system's: a file (PEM or DER), or PEM.",
        ),
        key("from", ValueKind::Text, "Sender: imgsync@example.com, or imgsync <imgsync@example.com>."),
        key("to", ValueKind::OneOrMany(&ValueKind::Text), "Recipients."),
        CHAT_TEMPLATE,
        ON,
    ],
};

pub(super) static SCHEDULE: ConfigSection = ConfigSection {
    title: "`schedule`",
    keys: &[
        key("cron", ValueKind::Text, "Minute, hour, day of month, month, day of week: 0 3 * * MON-FRI."),
        key("every", ValueKind::Duration, "Interval, such as 6h; the first run starts immediately."),
        key("jitter", ValueKind::Duration, "Random delay of each run up to this, to spread the load."),
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
            "Token for changes, and for reading from other hosts or through a proxy; generated by default.",
        ),
        key(
            "hosts",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Additional host names that requests may use, such as that of a reverse proxy.",
        ),
    ],
};

pub(super) static HOOK: ConfigSection = ConfigSection {
    title: "a hook",
    keys: &[
        key("registry", ValueKind::Text, "The registry that sends, by the name that rules use in `from`."),
        key(
            "kind",
            ValueKind::Text,
            "Shape of the notifications: distribution, harbor, docker-hub, quay, github, gitlab, acr, artifact-registry, \
             ecr, zot, gitea or generic.",
        ),
        key("secret", ValueKind::Secret, "What the sender proves itself with; at least 16 characters."),
        key(
            "auth",
            ValueKind::Text,
            "How the secret comes: hmac (over the body), header, basic, query (?secret=…), or none (only on loopback); by \
             default the best that the sender can do.",
        ),
        key(
            "header",
            ValueKind::Text,
            "The header of `auth: header` (Authorization) or of `auth: hmac` (X-Hub-Signature-256, or X-Gitea-Signature).",
        ),
        key(
            "rules",
            ValueKind::OneOrMany(&ValueKind::Text),
            "Names of the rules that it may trigger (all that read from the registry).",
        ),
    ],
};

/// All sections, for naming the one of a misplaced key.
pub(super) static SECTIONS: [&ConfigSection; 24] = [
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
    &POLICY,
    &SIGNED,
    &FROM,
    &SCHEDULE,
    &SERVE,
    &HOOK,
];

/// Keys whose values are not secret, but stand beside a secret or are mistaken for one: messages do not show them.
const NEAR_SECRETS: [&str; 9] =
    ["username", "sentinel_username", "broker", "store", "proxy", "url", "ca", "client_cert", "client_key"];

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

/// Minimum length of a shortened key that is recognised.
const MIN_SHORTENED_KEY_CHARS: usize = 4;

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
            .or_else(|| self.complete(&written))
    }

    /// Returns the only key that begins with a shortened one: `username` for `user`.
    fn complete(&self, written: &str) -> Option<&'static str> {
        let mut found = self.keys.iter().map(|key| key.name).filter(|name| name.starts_with(written));
        let first = found.next().filter(|_| written.len() >= MIN_SHORTENED_KEY_CHARS)?;
        found.next().is_none().then_some(first)
    }

    pub(super) fn key_names(&self) -> String {
        let names: Vec<&str> = self.keys.iter().map(|key| key.name).collect();
        names.join(", ")
    }
}
