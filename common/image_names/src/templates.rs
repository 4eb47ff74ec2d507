//! Values with parts that another program fills in, and the parser of image fields.

use imgsync_oci::Reference;

/// Marks of templates and variables of Helm and Go, Kubernetes and Tekton, shells, zarf, Python and documentation.
const MARKS: [&str; 9] = ["{{", "}}", "$(", "${", "###", "<<", "%(", "[[", "{%"];

/// Reason why a template names no image.
pub(crate) const TEMPLATE_REASON: &str = "a template or variable that is not filled in";

/// Returns whether a value has a part that another program fills in: `{{ .Values.tag }}`, `$(TAG)`, `${TAG}`, `<tag>`.
pub(crate) fn has_template(text: &str) -> bool {
    MARKS.iter().any(|mark| text.contains(mark))
        || text.split_once('<').is_some_and(|(_, rest)| rest.contains('>'))
        || text.split_once('$').is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))
}

/// Parses the value of a field that names an image, or returns the reason why it names none. Prefixes of runtimes
/// (`docker-pullable://`) and of OCI URLs are dropped.
pub(crate) fn parse_image(text: &str) -> Result<Reference, String> {
    if has_template(text) {
        return Err(TEMPLATE_REASON.to_owned());
    }
    strip_scheme(text).parse::<Reference>().map_err(|error| error.to_string())
}

/// Drops the scheme that says how an image is pulled.
pub(crate) fn strip_scheme(text: &str) -> &str {
    ["docker-pullable://", "docker-image://", "docker://", "containerd://", "oci://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .unwrap_or(text)
}

/// Returns the value of a line `image: VALUE`, without quotes.
pub(crate) fn image_line(line: &str) -> Option<&str> {
    let line = line.trim().trim_start_matches("- ").trim_start_matches(['"', '\'']);
    let value = line.strip_prefix("image")?.trim_start_matches(['"', '\'']).strip_prefix(':')?;
    let value = value.split_once(" #").map_or(value, |(value, _)| value);
    let value = value.trim().trim_end_matches(',').trim_matches(['"', '\'']);
    (!value.is_empty()).then_some(value)
}

/// Returns the values of `image: VALUE` in a line, or of `"image": "VALUE"` in JSON.
pub(crate) fn image_values(line: &str) -> Vec<&str> {
    if let Some(value) = image_line(line) {
        return vec![value];
    }
    let value = |(at, key): (usize, &str)| {
        let rest = line[at + key.len()..].trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        rest.split_once('"').map(|(value, _)| value)
    };
    line.match_indices("\"image\"").filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfilled_values_are_recognised() {
        for text in [
            "{{ .Values.image }}:1",
            "a/b:{{ tag }}",
            "$(params.image)",
            "${IMAGE}",
            "$IMAGE",
            "<image>",
            "###ZARF_VAR_X###",
            "[[ image ]]",
        ] {
            assert!(has_template(text), "{text}");
            assert_eq!(parse_image(text), Err(TEMPLATE_REASON.to_owned()), "{text}");
        }
        for text in ["alpine", "a.example/b:1", "robot$1", "a<b"] {
            assert!(!has_template(text), "{text}");
        }
    }

    #[test]
    fn schemes_of_runtimes_are_dropped() {
        let image = parse_image(
            "docker-pullable://nginx@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        );
        assert!(image.unwrap().to_string().starts_with("docker.io/library/nginx@sha256:"));
        assert!(parse_image("https://example.com/logo.png").unwrap_err().contains("without `https://`"));
    }

    #[test]
    fn lines_with_images_are_recognised() {
        for (line, value) in [
            ("  - image: nginx", Some("nginx")),
            ("image: \"{{ .x }}\"", Some("{{ .x }}")),
            ("\"image\": \"a:1\",", Some("a:1")),
            ("imagePullPolicy: Always", None),
            ("image:", None),
            ("image: a:1 # old", Some("a:1")),
        ] {
            assert_eq!(image_line(line), value, "{line}");
        }
        assert_eq!(image_values("{\"image\": \"a:1\", \"x\": {\"image\":\"b:1\"}}"), ["a:1", "b:1"]);
        assert_eq!(image_values("{\"image\": {}, \"images\": \"x\"} \"image\""), [""; 0]);
    }
}
