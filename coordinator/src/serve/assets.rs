//! Assets of the dashboard, embedded in the program, so that it needs no other server.

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::routing::get;

/// Path, media type and content.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("dashboard/index.html")),
    ("/dashboard/style.css", "text/css; charset=utf-8", include_str!("dashboard/style.css")),
    ("/dashboard/app.js", "text/javascript; charset=utf-8", include_str!("dashboard/app.js")),
    ("/dashboard/server.js", "text/javascript; charset=utf-8", include_str!("dashboard/server.js")),
    ("/dashboard/views.js", "text/javascript; charset=utf-8", include_str!("dashboard/views.js")),
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
    use super::*;

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
}
