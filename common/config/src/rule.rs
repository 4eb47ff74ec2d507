//! `rules:`: what to copy, and where to.

mod policy;
mod source;
pub(super) mod titles;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use self::policy::read_policy;
use self::source::{read_archive_path, read_layout_path, read_source};
use super::absolute_path::absolute_path;
use super::preset::{Preset, PresetInfo};
use super::reader::{SectionFields, ValueReader};
use super::retention::{self, PruneConfig};
use super::schedule;
use super::schema_table::{DEFAULTS, NEWEST, RULE, TAG_RULES};
use super::yaml::{YamlNode, YamlValue};
use imgsync_model::batch::{ForeignLayers, ImagePolicy, Priority, Referrers};
use imgsync_model::naming::{
    BackupTagTemplate, NamingStyle, SingleRepositoryRule, SourceName, TargetBase, TargetName, TargetNameError,
    find_certain_collision,
};
use imgsync_model::schedule::Schedule;
use imgsync_model::select::{Newest, NewestBy, RepositoryPattern, SelectionContradiction, TagPattern, TagSelection};
use imgsync_oci::humanize::pluralize;
use imgsync_oci::{ArchiveFormat, Digest, Platform, RegistryName, RepositoryName, Tag};

pub(crate) use policy::MAX_KEYS as MAX_POLICY_KEYS;
pub(crate) use titles::MAX_NAME_CHARS;

/// An entry of `rules`, with `defaults` filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Line where the rule begins, for messages; 0 if it is in no file.
    pub line: usize,
    /// Name, if one is set. See [`Rule::title`].
    pub name: Option<String>,
    /// Display name; empty for its name or its source. See [`Rule::title`].
    pub(super) title: String,
    /// Source.
    pub source: RuleSource,
    /// Tag filter.
    pub selection: TagSelection,
    /// Platforms to copy; all if empty.
    pub platforms: Vec<Platform>,
    /// Copy only these platforms of an index, and the index unchanged.
    pub sparse: bool,
    /// How to treat foreign layers.
    pub foreign_layers: ForeignLayers,
    /// Targets; at least one.
    pub to: Vec<RuleTarget>,
    /// Naming of target repositories; `None` leaves it to the preset and the kind of target, see [`Rule::style_at`].
    pub naming: Option<NamingStyle>,
    /// Referrers to copy.
    pub referrers: Referrers,
    /// Source tags that never move: once copied, they are neither checked again nor overwritten.
    pub immutable: Vec<TagPattern>,
    /// Name of the tag that keeps what an overwritten one pointed to.
    pub backup: Option<BackupTagTemplate>,
    /// What an image must be before it is copied.
    pub policy: Option<ImagePolicy>,
    /// Whether, and when, to remove target tags whose source is gone.
    pub prune: Option<PruneConfig>,
    /// Schedule for `imgsync serve`.
    pub schedule: Option<Schedule>,
    /// Priority of its tasks, relative to other batches.
    pub priority: Priority,
    /// How long a cached target tag is trusted.
    pub verify_every: Duration,
    /// How often an unchanged image is checked for new referrers.
    pub referrers_every: Duration,
}

/// Source of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum RuleSource {
    /// A preset by name.
    Preset(Preset),
    /// Repositories of a registry.
    Repositories(RepositoryPattern),
    /// A whole image layout; a relative path is relative to the configuration file.
    Layout(PathBuf),
    /// A whole archive; a relative path is relative to the configuration file.
    Archive(ArchiveFormat, PathBuf),
    /// Images that files and folders name; a relative path is relative to the configuration file.
    Images(Vec<PathBuf>),
    /// Images of a repository, by digest.
    Digests(DigestsSource),
}

/// Images of a repository, by digest.
#[derive(Clone, Debug, PartialEq)]
pub struct DigestsSource {
    /// The registry.
    pub registry: RegistryName,
    /// The repository.
    pub repository: RepositoryName,
    /// The digests, each once.
    pub digests: Vec<Digest>,
}

impl fmt::Display for RuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleSource::Preset(preset) => write!(f, "preset {preset}"),
            RuleSource::Repositories(pattern) => write!(f, "{pattern}"),
            RuleSource::Layout(folder) => write!(f, "oci:{}", folder.display()),
            RuleSource::Archive(format, file) => write!(f, "{}{}", format.scheme(), file.display()),
            RuleSource::Images(paths) => {
                let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                write!(f, "images of {}", paths.join(", "))
            }
            RuleSource::Digests(source) => {
                let count = pluralize(source.digests.len() as u64, "digest", "digests");
                write!(f, "{}/{} ({count})", source.registry, source.repository)
            }
        }
    }
}

impl RuleSource {
    /// Whether the source is a layout or an archive on this machine.
    pub fn is_local(&self) -> bool {
        matches!(self, RuleSource::Layout(_) | RuleSource::Archive(..))
    }

    /// Whether the source names each image, so that nothing is listed and no tag filter applies.
    pub fn names_images(&self) -> bool {
        matches!(self, RuleSource::Images(_) | RuleSource::Digests(_))
    }
}

/// Target of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RuleTarget {
    /// A registry, and a path there.
    Registry(TargetBase),
    /// An image layout; a relative path is relative to the configuration file.
    Layout(PathBuf),
    /// An archive that is written as a whole; a relative path is relative to the configuration file.
    Archive(ArchiveFormat, PathBuf),
}

impl fmt::Display for RuleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleTarget::Registry(base) => write!(f, "{base}"),
            RuleTarget::Layout(path) => write!(f, "oci:{}", path.display()),
            RuleTarget::Archive(format, file) => write!(f, "{}{}", format.scheme(), file.display()),
        }
    }
}

impl RuleTarget {
    /// Whether the target is a layout or an archive on this machine.
    pub fn is_local(&self) -> bool {
        self.registry().is_none()
    }

    /// Returns the file of an archive, in one spelling.
    pub fn archive_file(&self) -> Option<PathBuf> {
        match self {
            RuleTarget::Archive(_, file) => Some(absolute_path(file)),
            RuleTarget::Registry(_) | RuleTarget::Layout(_) => None,
        }
    }

    /// Returns the registry and the path there; `None` for a layout or an archive.
    pub fn registry(&self) -> Option<&TargetBase> {
        match self {
            RuleTarget::Registry(base) => Some(base),
            RuleTarget::Layout(_) | RuleTarget::Archive(..) => None,
        }
    }
}

impl Rule {
    /// Returns the naming style at a target: the configured one, else `full` in a layout or archive and `flat` in a
    /// registry.
    pub fn style_at(&self, destination: &RuleTarget) -> NamingStyle {
        match (&self.naming, destination) {
            (Some(style), _) => style.clone(),
            (None, RuleTarget::Registry(_)) => NamingStyle::Flat,
            (None, RuleTarget::Layout(_) | RuleTarget::Archive(..)) => NamingStyle::Full,
        }
    }

    /// Returns the source for display.
    pub fn source_label(&self) -> String {
        match &self.source {
            RuleSource::Repositories(pattern) => pattern.to_string(),
            RuleSource::Layout(path) => format!("oci:{}", path.display()),
            other @ (RuleSource::Archive(..) | RuleSource::Images(_) | RuleSource::Digests(_)) => other.to_string(),
            RuleSource::Preset(preset) => preset.to_string(),
        }
    }

    /// Returns the targets for display.
    pub fn target_labels(&self) -> Vec<String> {
        self.to.iter().map(ToString::to_string).collect()
    }

    /// Returns the display name of the rule in the API, the dashboard, reports and metrics: its `target_name`, else its
    /// source. It is unique in a configuration: rules without a name that share a source get a longer one.
    pub fn title(&self) -> String {
        match self.title.as_str() {
            "" => self.name.clone().unwrap_or_else(|| self.source_label()),
            title => title.to_owned(),
        }
    }

    /// Returns the reference to the rule in messages: its name, else its line, else its source.
    pub fn label(&self) -> String {
        match (&self.name, self.line) {
            (Some(name), _) => format!("rule {name}"),
            (None, 0) => self.source.to_string(),
            (None, line) => format!("the rule in line {line}"),
        }
    }

    /// Names the shortest repository that a pattern can match at each registry that the rule writes to. A target that
    /// rejects that name rejects all.
    pub fn sample_names(&self, pattern: &RepositoryPattern) -> Vec<Result<TargetName, TargetNameError>> {
        let Some(sample) = pattern.shortest_match() else { return Vec::new() };
        let tag = Tag::latest();
        let source_name = SourceName { registry: pattern.registry(), repository: &sample, tag: &tag, original: None };
        let bases = self.to.iter().filter_map(|to| Some((to.registry()?, self.style_at(to))));
        bases.map(|(base, style)| style.target_name(base, &source_name)).collect()
    }
}

/// Values of `defaults` that a rule can override.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RuleDefaults {
    pub(super) to: Option<Vec<RuleTarget>>,
    pub(super) naming: Option<NamingStyle>,
    selection: Option<TagSelection>,
    platforms: Option<Vec<Platform>>,
    sparse: Option<bool>,
    foreign_layers: Option<ForeignLayers>,
    referrers: Option<Referrers>,
    immutable: Option<Vec<TagPattern>>,
    backup: Option<BackupTagTemplate>,
    /// Empty if nothing is required.
    pub(super) policy: Option<ImagePolicy>,
    schedule: Option<Schedule>,
    priority: Option<Priority>,
}

/// Context of rules: the rest of the configuration.
pub(super) struct RuleContext<'a> {
    pub(super) reader: &'a ValueReader,
    pub(super) presets: Option<&'a [PresetInfo<'a>]>,
    pub(super) defaults: RuleDefaults,
    /// Target of rules without one.
    pub(super) default_target: Option<TargetBase>,
    pub(super) verify_every: Duration,
    pub(super) referrers_every: Duration,
    pub(super) in_cluster: bool,
}

pub(super) fn read_defaults(reader: &ValueReader, node: &YamlNode) -> RuleDefaults {
    match reader.fields(node, &DEFAULTS) {
        Some(fields) => read_overridable(reader, &fields, false),
        None => RuleDefaults::default(),
    }
}

fn read_overridable(reader: &ValueReader, fields: &SectionFields<'_>, has_preset: bool) -> RuleDefaults {
    RuleDefaults {
        to: fields
            .get("to")
            .map(|node| reader.one_or_many(node).iter().filter_map(|node| read_target(reader, node)).collect()),
        naming: fields.get("naming").and_then(|node| {
            let style: NamingStyle = reader.parse(node)?;
            if style == NamingStyle::Original && !has_preset && fields.entry("from").is_some() {
                reader.report(&node.at, "`naming: original` is for presets only: it uses the names of imgsync 2.1");
                return None;
            }
            Some(style)
        }),
        selection: fields.get("tags").map(|node| read_selection(reader, node)),
        platforms: fields.get("platforms").map(|node| reader.parse_one_or_many(node)),
        sparse: fields.get("sparse").and_then(|node| reader.flag(node)),
        foreign_layers: fields.get("foreign_layers").and_then(|node| match reader.text(node)? {
            "keep" => Some(ForeignLayers::Keep),
            "copy" => Some(ForeignLayers::Copy),
            other => {
                reader.report_value(node, format!("`{other}` is not one of keep (as references), copy"), None);
                None
            }
        }),
        schedule: fields.get("schedule").and_then(|node| schedule::read(reader, node)),
        referrers: fields.get("referrers").and_then(|node| match &node.value {
            YamlValue::List(_) => {
                let types: Vec<String> =
                    reader.one_or_many(node).iter().filter_map(|node| read_artifact_type(reader, node)).collect();
                (!types.is_empty()).then_some(Referrers::Types(types))
            }
            _ => reader.flag(node).map(|all| if all { Referrers::All } else { Referrers::None }),
        }),
        immutable: fields.get("immutable").map(|node| reader.parse_one_or_many(node)),
        backup: fields.get("backup").and_then(|node| reader.parse(node)),
        policy: fields.get("policy").and_then(|node| read_policy(reader, node)),
        priority: fields.get("priority").and_then(|node| reader.parse(node)),
    }
}

impl RuleDefaults {
    /// Returns these values, falling back to the others.
    fn or(self, other: &RuleDefaults) -> RuleDefaults {
        RuleDefaults {
            to: self.to.or_else(|| other.to.clone()),
            naming: self.naming.or_else(|| other.naming.clone()),
            selection: self.selection.or_else(|| other.selection.clone()),
            platforms: self.platforms.or_else(|| other.platforms.clone()),
            sparse: self.sparse.or(other.sparse),
            foreign_layers: self.foreign_layers.or(other.foreign_layers),
            referrers: self.referrers.or_else(|| other.referrers.clone()),
            immutable: self.immutable.or_else(|| other.immutable.clone()),
            backup: self.backup.or_else(|| other.backup.clone()),
            policy: self.policy.or_else(|| other.policy.clone()),
            schedule: self.schedule.or_else(|| other.schedule.clone()),
            priority: self.priority.or(other.priority),
        }
    }

    /// Creates a rule from these values alone.
    pub(super) fn rule(&self, source: RuleSource, home: Option<TargetBase>, every: (Duration, Duration)) -> Rule {
        let home = || home.map(|home| vec![RuleTarget::Registry(home)]);
        // `original` in `defaults` applies to presets only; other sources have no former names.
        let has_original = matches!(source, RuleSource::Preset(_));
        let naming = self.naming.clone().filter(|naming| *naming != NamingStyle::Original || has_original);
        let selection = if source.names_images() { None } else { self.selection.clone() };
        Rule {
            line: 0,
            name: None,
            title: String::new(),
            source,
            selection: selection.unwrap_or_default(),
            platforms: self.platforms.clone().unwrap_or_default(),
            sparse: self.sparse.unwrap_or_default(),
            foreign_layers: self.foreign_layers.unwrap_or_default(),
            to: self.to.clone().or_else(home).unwrap_or_default(),
            naming,
            referrers: self.referrers.clone().unwrap_or_default(),
            immutable: self.immutable.clone().unwrap_or_default(),
            backup: self.backup.clone(),
            policy: self.policy.clone().filter(|policy| !policy.is_empty()),
            prune: None,
            schedule: self.schedule.clone(),
            priority: self.priority.unwrap_or_default(),
            verify_every: every.0,
            referrers_every: every.1,
        }
    }
}

/// Reads a rule; `None` if not enough of it is valid to check it against others.
pub(super) fn read(surroundings: &RuleContext<'_>, node: &YamlNode, line: usize) -> Option<Rule> {
    let reader = surroundings.reader;
    let fields = reader.fields(node, &RULE)?;
    let source = read_source(surroundings, &fields);
    let own = read_overridable(reader, &fields, fields.get("preset").is_some());
    let duration = |name, default| fields.get(name).and_then(|node| reader.duration(node)).unwrap_or(default);
    let every = (
        duration("verify_every", surroundings.verify_every),
        duration("referrers_every", surroundings.referrers_every),
    );
    let to_is_said = own.to.is_some() || surroundings.defaults.to.is_some() || surroundings.default_target.is_some();
    if !to_is_said && fields.entry("to").is_none() && source.is_some() {
        reader.report_with_hint(
            &fields.at,
            "rule has no target (`to`)",
            "set `to` here or in `defaults`, or a `username` for docker.io in `registries`",
        );
    }
    let prune = fields.get("prune").and_then(|node| retention::read_prune(reader, node));
    let name = fields.get("name").and_then(|node| titles::read(reader, node));
    let rule = Rule {
        line,
        name,
        prune,
        ..own.or(&surroundings.defaults).rule(source?, surroundings.default_target.clone(), every)
    };
    check_rule(surroundings, &rule, &fields);
    Some(rule)
}

fn read_artifact_type(reader: &ValueReader, node: &YamlNode) -> Option<String> {
    let text = reader.text(node)?;
    match Referrers::check_type(text) {
        Ok(()) => Some(text.to_owned()),
        Err(error) => {
            reader.report(&node.at, error);
            None
        }
    }
}

fn read_target(reader: &ValueReader, node: &YamlNode) -> Option<RuleTarget> {
    let text = reader.text(node)?;
    if let Some((format, file)) = ArchiveFormat::split_scheme(text) {
        return read_archive_path(reader, node, format, file).map(|file| RuleTarget::Archive(format, file));
    }
    match text.strip_prefix("oci:") {
        Some(layout) => read_layout_path(reader, node, layout).map(RuleTarget::Layout),
        None => reader.parse(node).map(RuleTarget::Registry),
    }
}

/// Maximum number of tags that a hint repeats.
const MAX_HINTED_TAGS: usize = 5;

/// Returns what to write instead of tags without a key: `tags: latest`, `tags: ["7.4"]`.
fn hint_for_plain_tags(node: &YamlNode) -> Option<String> {
    let items = match &node.value {
        YamlValue::Scalar(_) => std::slice::from_ref(node),
        YamlValue::List(items) if !items.is_empty() && items.len() <= MAX_HINTED_TAGS => items,
        _ => return None,
    };
    let quoted: Option<Vec<String>> = items
        .iter()
        .map(|item| match &item.value {
            YamlValue::Scalar(scalar) if !scalar.is_expanded => Some(format!("\"{}\"", scalar.text)),
            _ => None,
        })
        .collect();
    Some(format!("write `tags: {{include: [{}]}}`", quoted?.join(", ")))
}

pub(super) fn read_selection(reader: &ValueReader, node: &YamlNode) -> TagSelection {
    if let Some(hint) = hint_for_plain_tags(node) {
        let message = format!("`tags` is a mapping of {}, and this is {}", TAG_RULES.key_names(), node.type_name());
        reader.report_value(node, message, Some(hint));
        return TagSelection::default();
    }
    let Some(fields) = reader.fields(node, &TAG_RULES) else { return TagSelection::default() };
    let selection = TagSelection {
        include: fields.get("include").map(|node| reader.parse_one_or_many(node)).unwrap_or_default(),
        exclude: fields.get("exclude").map(|node| reader.parse_one_or_many(node)).unwrap_or_default(),
        range: fields.get("semver").and_then(|node| reader.parse(node)),
        newest: fields.get("newest").and_then(|node| read_newest(reader, node)),
        since: fields.get("since").and_then(|node| reader.parse(node)),
        min: fields.get("min").and_then(|node| reader.integer(node, 1..=usize::MAX)),
    };
    for contradiction in selection.contradictions() {
        let (key, index) = match contradiction {
            SelectionContradiction::IncludeExcluded { index, .. } => ("include", Some(index)),
            SelectionContradiction::AllExcluded(_) => ("exclude", None),
            SelectionContradiction::NewestZero => ("newest", None),
            SelectionContradiction::MinAboveNewest { .. } => ("min", None),
        };
        let Some(node) = fields.get(key) else { continue };
        // The index is right only if all patterns could be parsed.
        let item = match (&node.value, index) {
            (YamlValue::List(items), Some(index)) if items.len() == selection.include.len() => items.get(index),
            _ => None,
        };
        reader.report_value(item.unwrap_or(node), contradiction, None);
    }
    selection
}

fn read_newest(reader: &ValueReader, node: &YamlNode) -> Option<Newest> {
    let YamlValue::Map(_) = node.value else {
        return reader.integer(node, 1..=usize::MAX).map(|count| Newest { count, by: NewestBy::Version });
    };
    let fields = reader.fields(node, &NEWEST)?;
    let by = match fields.get("by") {
        None => NewestBy::Version,
        Some(node) => match reader.text(node)? {
            "version" => NewestBy::Version,
            "date" => NewestBy::Date,
            other => {
                reader.report_value(node, format!("`{other}` is not one of version, date"), None);
                return None;
            }
        },
    };
    let Some(count) = fields.get("count") else {
        reader.report(&fields.at, "`count` is missing");
        return None;
    };
    reader.integer(count, 1..=usize::MAX).map(|count| Newest { count, by })
}

/// Checks a rule as far as possible before anything is listed.
fn check_rule(surroundings: &RuleContext<'_>, rule: &Rule, fields: &SectionFields<'_>) {
    let reader = surroundings.reader;
    let place = |name: &str| fields.entry(name).map_or(&fields.at, |entry| &entry.value.at).clone();
    if surroundings.in_cluster {
        let message = "a layout or an archive works in one process only, and this configuration has a `cluster`";
        if rule.source.is_local() {
            reader.report(&place("from"), message);
        }
        if rule.to.iter().any(RuleTarget::is_local) {
            reader.report(&place("to"), message);
        }
    }
    if rule.prune.is_some() && (rule.source.is_local() || rule.to.iter().any(RuleTarget::is_local)) {
        let key = fields.entry("prune").map_or(&fields.at, |entry| &entry.key_at);
        reader.report(key, "`prune` needs registries as source and target; layouts and archives are never pruned");
    }
    if rule.backup.is_some() && fields.entry("backup").is_some() && rule.to.iter().any(RuleTarget::is_local) {
        reader.report(&place("backup"), "`backup` is not supported for layouts and archives");
    }
    if rule.sparse && rule.platforms.is_empty() && fields.get("sparse").is_some() {
        reader.report_with_hint(&place("sparse"), "`sparse` needs `platforms`", "list the platforms to copy");
    }
    if let Some(policy) = rule.policy.as_ref().filter(|_| !rule.platforms.is_empty()) {
        let missing = |wanted: &&Platform| !rule.platforms.iter().any(|copied| copied.satisfies(wanted));
        if let Some(missing) = policy.requires_platforms.iter().find(missing) {
            let message = format!("`requires_platforms` has {missing}, which `platforms` does not copy");
            reader.report(&place(if fields.entry("policy").is_some() { "policy" } else { "platforms" }), message);
        }
    }
    if rule.source.names_images() {
        for name in ["tags", "prune"] {
            if let Some(entry) = fields.entry(name) {
                let message = format!("`{name}` needs `from` without `digests`: this rule names each image");
                reader.report(&entry.key_at, message);
            }
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        if rule.to[..index].contains(to) {
            reader.report(&place("to"), "duplicate target");
        }
    }
    let named;
    let patterns = match &rule.source {
        RuleSource::Repositories(pattern) => std::slice::from_ref(pattern),
        RuleSource::Digests(source) => {
            named = format!("{}/{}", source.registry, source.repository).parse::<RepositoryPattern>();
            named.as_ref().map(std::slice::from_ref).unwrap_or_default()
        }
        RuleSource::Preset(preset) => {
            let known = surroundings.presets.and_then(|known| preset.find(known).ok());
            known.map(|known| known.repositories).unwrap_or_default()
        }
        RuleSource::Layout(folder) => {
            if rule.to.contains(&RuleTarget::Layout(folder.clone())) {
                reader.report(&place("to"), "source and target are the same");
            }
            return;
        }
        RuleSource::Archive(_, file) => {
            if rule.to.iter().any(|to| matches!(to, RuleTarget::Archive(_, target) if target == file)) {
                reader.report(&place("to"), "source and target are the same");
            }
            return;
        }
        RuleSource::Images(_) => return,
    };
    for pattern in patterns {
        for name in rule.sample_names(pattern) {
            match name {
                Err(error) => {
                    reader.report(
                        &place(if fields.get("naming").is_some() { "naming" } else { "to" }),
                        error.to_string(),
                    );
                    // The error of another repository of the same preset would add nothing.
                    return;
                }
                Ok(target) => {
                    if pattern.repository().is_some_and(|repository| target.repository == repository)
                        && target.registry == *pattern.registry()
                    {
                        reader.report(&place("to"), "source and target are the same");
                    }
                }
            }
        }
    }
}

/// Returns the platforms of a rule, independent of order and spelling.
fn canonical_platforms(rule: &Rule) -> BTreeSet<String> {
    rule.platforms.iter().map(Platform::canonical).collect()
}

/// Reports archives that rules write in both formats: the last one would replace the other.
pub(super) fn check_archive_formats(reader: &ValueReader, rules: &[(Rule, &YamlNode)]) {
    let mut formats: HashMap<PathBuf, (ArchiveFormat, usize)> = HashMap::new();
    for (rule, node) in rules {
        for to in &rule.to {
            let (RuleTarget::Archive(format, _), Some(file)) = (to, to.archive_file()) else { continue };
            let (first, line) = *formats.entry(file).or_insert((*format, rule.line));
            if first != *format {
                let message = format!("{} is also written as {} by the rule in line {line}", to, first.scheme());
                reader.report_with_hint(&node.at, message, "use one of the two: both formats are in each archive");
                return;
            }
        }
    }
}

/// Reports rules that would write different images under one name, whatever the registries contain.
pub(super) fn check_collisions(reader: &ValueReader, rules: &[(Rule, &YamlNode)]) {
    // Rules that read one repository, by target, so that only rules that meet are compared.
    let mut writers: HashMap<String, Vec<(usize, RepositoryName, &TargetBase, NamingStyle)>> = HashMap::new();
    for (index, (rule, node)) in rules.iter().enumerate() {
        let RuleSource::Repositories(pattern) = &rule.source else { continue };
        let Some(repository) = pattern.repository() else { continue };
        for to in &rule.to {
            let RuleTarget::Registry(base) = to else { continue };
            let style = rule.style_at(to);
            let tag = Tag::latest();
            let source_name =
                SourceName { registry: pattern.registry(), repository: &repository, tag: &tag, original: None };
            let Ok(target) = style.target_name(base, &source_name) else { continue };
            let target = format!("{}/{}", target.registry, target.repository);
            let earlier = writers.entry(target.clone()).or_default();
            let met = earlier.iter().find(|(other, other_repository, other_base, other_style)| {
                let RuleSource::Repositories(other_pattern) = &rules[*other].0.source else { return false };
                let theirs = SingleRepositoryRule {
                    registry: other_pattern.registry(),
                    repository: other_repository,
                    selection: &rules[*other].0.selection,
                    base: other_base,
                    style: other_style,
                };
                let this = SingleRepositoryRule {
                    registry: pattern.registry(),
                    repository: &repository,
                    selection: &rule.selection,
                    base,
                    style: &style,
                };
                let other_rule = &rules[*other].0;
                // With the same source, the images differ only if the platforms do.
                let same_source = (this.registry, this.repository) == (theirs.registry, theirs.repository);
                find_certain_collision(&theirs, &this).is_some()
                    || (same_source
                        && (canonical_platforms(other_rule), other_rule.sparse)
                            != (canonical_platforms(rule), rule.sparse)
                        && other_rule.selection.certainly_overlaps(&rule.selection))
            });
            if let Some((other, ..)) = met {
                let line = rules[*other].0.line;
                reader.report_with_hint(
                    &node.at,
                    format!("{target} is also written by the rule in line {line}, with other images"),
                    "use another `naming` or `to` for one of the two",
                );
            }
            earlier.push((index, repository.clone(), base, style));
        }
    }
}
