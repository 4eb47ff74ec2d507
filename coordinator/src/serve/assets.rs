//! Assets of the dashboard, embedded in the program, so that it needs no other server.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::routing::get;

/// Path, media type and content.
const FILES: [(&str, &str, &str); 13] = [
    ("/", "text/html; charset=utf-8", include_str!("dashboard/index.html")),
    ("/dashboard/style.css", "text/css; charset=utf-8", include_str!("dashboard/style.css")),
    ("/dashboard/app.js", "text/javascript; charset=utf-8", include_str!("dashboard/app.js")),
    ("/dashboard/server.js", "text/javascript; charset=utf-8", include_str!("dashboard/server.js")),
    ("/dashboard/dom.js", "text/javascript; charset=utf-8", include_str!("dashboard/dom.js")),
    ("/dashboard/overview.js", "text/javascript; charset=utf-8", include_str!("dashboard/overview.js")),
    ("/dashboard/rule.js", "text/javascript; charset=utf-8", include_str!("dashboard/rule.js")),
    ("/dashboard/failures.js", "text/javascript; charset=utf-8", include_str!("dashboard/failures.js")),
    ("/dashboard/batches.js", "text/javascript; charset=utf-8", include_str!("dashboard/batches.js")),
    ("/dashboard/batch.js", "text/javascript; charset=utf-8", include_str!("dashboard/batch.js")),
    ("/dashboard/workers.js", "text/javascript; charset=utf-8", include_str!("dashboard/workers.js")),
    ("/dashboard/search.js", "text/javascript; charset=utf-8", include_str!("dashboard/search.js")),
    ("/dashboard/plot.js", "text/javascript; charset=utf-8", include_str!("dashboard/plot.js")),
];

/// Serves the assets, which contain no secrets: data comes from the API.
pub(super) fn routes() -> Router {
    let mut router = Router::new();
    for (path, kind, content) in FILES {
        // Revalidation keeps assets of different versions from being mixed.
        let file = move || async move { ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], content) };
        router = router.route(path, get(file));
    }
    router
}

#[cfg(test)]
mod tests {
    use imgsync_config::{Config, ConfigFile};
    use imgsync_model::batch::TaskState;
    use imgsync_oci::error::ErrorKind;

    use super::super::rules::RuleState;
    use super::*;

    #[test]
    fn every_module_that_the_page_imports_is_served() {
        let imports = FILES.iter().flat_map(|(_, _, content)| content.split("from \"./").skip(1));
        let mut names: Vec<&str> = imports.filter_map(|rest| rest.split('"').next()).collect();
        names.sort_unstable();
        names.dedup();
        let served: Vec<&str> = FILES.iter().filter_map(|(path, ..)| path.strip_prefix("/dashboard/")).collect();
        assert!(names.iter().all(|name| served.contains(name)), "{names:?} of {served:?}");
        let unused: Vec<_> = served.iter().filter(|name| !names.contains(name)).collect();
        assert_eq!(unused, [&"style.css", &"app.js"], "the page names these itself");
    }

    #[test]
    fn strings_reach_the_page_as_text_only_and_nothing_comes_from_elsewhere() {
        for (path, _, content) in FILES {
            for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
            {
                assert!(!content.contains(forbidden), "{path} has {forbidden}");
            }
            let foreign = content.replace("http://www.w3.org/2000/svg", "");
            assert!(!foreign.contains("http://") && !foreign.contains("https://"), "{path}");
            assert!(!content.contains("style=\""), "{path}: the policy lets no style through that stands in a tag");
        }
    }

    #[test]
    fn the_page_knows_every_state_and_error_kind() {
        let (batch, dom) = (include_str!("dashboard/batch.js"), include_str!("dashboard/dom.js"));
        let list = |name: &str| {
            let (_, rest) = batch.split_once(&format!("const {name} = [")).unwrap();
            rest.split_once("];")
                .unwrap()
                .0
                .split(", ")
                .map(|word| word.trim_matches('"').to_owned())
                .collect::<Vec<_>>()
        };
        let mut kinds: Vec<String> = ErrorKind::ALL.iter().map(ToString::to_string).collect();
        let mut states: Vec<String> = TaskState::ALL.iter().map(|state| state.as_str().to_owned()).collect();
        let (mut known_kinds, mut known_states) = (list("KINDS"), list("STATES"));
        for words in [&mut kinds, &mut states, &mut known_kinds, &mut known_states] {
            words.sort_unstable();
        }
        assert_eq!((known_kinds, known_states), (kinds, states));
        for state in RuleState::ALL {
            assert!(dom.contains(&format!("  {}: \"", state.as_str())), "{state:?}");
        }
    }

    #[test]
    fn the_first_rule_that_the_page_suggests_is_valid() {
        let page = include_str!("dashboard/overview.js");
        let (_, rest) = page.split_once("const example = \"").unwrap();
        let text = rest.split_once("\";").unwrap().0.replace("\\n", "\n");
        let file = ConfigFile { name: "example", text: &text, environment: &|_| None, presets: None };
        let config = Config::read(&file).unwrap();
        assert_eq!((config.rules.len(), config.rules[0].title()), (1, "alpine".to_owned()));
    }
}
