//! Target names from minijinja templates.

use std::sync::Arc;

use minijinja::{Environment, UndefinedBehavior, Value};

use super::{SourceName, TargetNameError, flatten_name};
use imgsync_oci::Tag;

const VARIABLES: [&str; 6] = ["registry", "repository", "namespace", "basename", "tag", "flat"];

/// A compiled name template. Its variables, for gcr.io/istio-release/pilot:1.25: `registry` gcr.io, `repository`
/// istio-release/pilot, `namespace` istio-release, `basename` pilot, `tag` 1.25, `flatten_name` gcr.io_istio-release_pilot.
/// Filters such as `replace`, `lower` and `split` are available.
#[derive(Clone, Debug)]
pub struct NamingTemplate {
    text: String,
    environment: Arc<Environment<'static>>,
    uses_tag: bool,
}

/// Error of parsing a naming style.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingTemplateError {
    /// Neither a style nor a template.
    #[error(
        "unknown naming style `{0}`: use flat, keep, basename, full, original or a template such as \
         {{{{namespace}}}}/{{{{basename}}}}"
    )]
    NotAStyle(String),
    /// Unknown variable.
    #[error("unknown variable `{0}`: available are registry, repository, namespace, basename, tag and flat")]
    UnknownVariable(String),
    /// Does not compile, or fails to render.
    #[error("the template is invalid: {0}")]
    Broken(String),
    /// All images would have the same name.
    #[error(
        "a name must contain {{{{repository}}}}, {{{{basename}}}} or {{{{flat}}}}, or all images would have the same \
         name"
    )]
    Constant,
}

impl NamingTemplate {
    /// Compiles a template and renders it once as a test.
    pub fn compile(text: &str) -> Result<Self, NamingTemplateError> {
        if !text.contains("{{") && !text.contains("{%") {
            return Err(NamingTemplateError::NotAStyle(text.to_owned()));
        }
        let broken = |error: minijinja::Error| NamingTemplateError::Broken(describe(&error));
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.add_template_owned("name", text.to_owned()).map_err(broken)?;
        let template = environment.get_template("name").map_err(broken)?;
        let used = template.undeclared_variables(false);
        let mut unknown: Vec<&String> =
            used.iter().filter(|name| !VARIABLES.contains(&name.as_str()) && !is_global(&environment, name)).collect();
        unknown.sort();
        if let Some(unknown) = unknown.first() {
            return Err(NamingTemplateError::UnknownVariable((*unknown).clone()));
        }
        if !["repository", "basename", "flat"].iter().any(|name| used.contains(*name)) {
            return Err(NamingTemplateError::Constant);
        }
        let uses_tag = used.contains("tag");
        let template = Self { text: text.to_owned(), environment: Arc::new(environment), uses_tag };
        template.render("registry.example.com", "namespace/name", "1.0").map_err(broken)?;
        Ok(template)
    }

    /// Returns the template as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn depends_on_tag(&self) -> bool {
        self.uses_tag
    }

    pub(super) fn render_name(&self, source_name: &SourceName<'_>) -> Result<(String, Tag), TargetNameError> {
        let refuse = |name: &str, reason: String| TargetNameError { name: name.to_owned(), reason };
        let name = self
            .render(source_name.registry.as_str(), source_name.repository.as_str(), source_name.tag.as_str())
            .map_err(|error| refuse(&self.text, describe(&error)))?;
        match name.trim().rsplit_once(':') {
            None => Ok((name.trim().to_owned(), source_name.tag.clone())),
            Some((path, tag)) => match tag.parse() {
                Ok(tag) => Ok((path.to_owned(), tag)),
                Err(error) => Err(refuse(&name, format!("{error}"))),
            },
        }
    }

    fn render(&self, registry: &str, repository: &str, tag: &str) -> Result<String, minijinja::Error> {
        let (namespace, basename) = repository.rsplit_once('/').unwrap_or(("", repository));
        let flat = flatten_name(&format!("{registry}/{repository}"));
        let values = [registry, repository, namespace, basename, tag, &flat];
        let context = Value::from_pairs(VARIABLES.into_iter().zip(values));
        self.environment.get_template("name")?.render(context)
    }
}

impl PartialEq for NamingTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

fn is_global(environment: &Environment<'_>, name: &str) -> bool {
    environment.globals().any(|(global, _)| global == name)
}

/// Returns an error's kind and detail, without the internal template name.
pub(super) fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
