//! Names that must be neither guessed nor lost.

use super::found;
use crate::{Certainty, scan_file};

#[test]
fn templates_without_quotes_are_undecided() {
    let text = "\
kind: Deployment
spec:
  template:
    spec:
      containers:
      - name: a
        image: {{ .Values.image }}
      - name: b
        image: {{ .Values.image | default \"x\" | quote }}
      - name: c
        image: r.example/c:1
---
kind: Database
spec:
  image: {repository: {{ .Values.repository }}, tag: {{ .Values.tag }}}
  proxy: {repository: r.example/proxy, tag: {{ .Values.tag }}}
";
    assert_eq!(
        found("x.yaml", text),
        [
            "7!{{ .Values.image }}",
            "9!{{ .Values.image | default \"x\" | quote }}",
            "11=r.example/c:1",
            "15!{{ .Values.repository }}:{{ .Values.tag }}",
            "16!r.example/proxy:{{ .Values.tag }}",
        ]
    );
    let compose = "services:\n  a:\n    image: {{ img }}\n  b: {image: alpine}\n";
    assert_eq!(found("compose.yaml", compose), ["3!{{ img }}", "4=docker.io/library/alpine:latest"]);
    // What stands below a key that is a template is read.
    assert_eq!(found("x.yaml", "kind: X\n{{ .Name }}:\n  image: r.example/a:1\n"), ["3=r.example/a:1"]);
    assert_eq!(found("list.yaml", "- r.example/a:1\n- {{ img }}\n"), ["1=r.example/a:1", "2!{{ img }}"]);
}

#[test]
fn templates_in_texts_are_as_uncertain_as_the_images_there() {
    let text = "\
kind: ConfigMap
data:
  inject: |
    containers:
    - image: \"{{ .ProxyImage }}\"
---
kind: Pod
spec: {containers: [{name: a, image: '{{ .Values.image }}'}]}
";
    let scan = scan_file("x.yaml", text.as_bytes());
    let undecided: Vec<(&str, Certainty)> =
        scan.undecided.iter().map(|name| (name.text.as_str(), name.certainty)).collect();
    assert_eq!(undecided, [("{{ .ProxyImage }}", Certainty::Perhaps), ("{{ .Values.image }}", Certainty::Sure)]);
}

#[test]
fn latest_is_not_guessed_in_custom_resources() {
    let text = "\
kind: Elasticsearch
spec: {image: docker.elastic.co/es/es, version: 8.13.0}
---
kind: Prometheus
spec: {image: 'quay.io/p/p:v2', baseImage: quay.io/p/p, tag: v3, resources: {}}
---
kind: Service
spec: {template: {spec: {containers: [{image: ghcr.io/x/a}]}}}
---
kind: Workflow
spec: {templates: [{container: {image: ghcr.io/x/b, command: [x]}}]}
---
kind: Deployment
spec: {template: {spec: {containers: [{image: ghcr.io/x/c}]}}}
";
    assert_eq!(
        found("x.yaml", text),
        [
            "2!docker.elastic.co/es/es",
            "5!quay.io/p/p",
            "5=quay.io/p/p:v2",
            "8=ghcr.io/x/a:latest",
            "11=ghcr.io/x/b:latest",
            "14=ghcr.io/x/c:latest"
        ]
    );
}

#[test]
fn a_complete_image_is_not_joined_with_a_repository() {
    let text = "\
kind: X
spec:
  a: {image: 'quay.io/a/b:1', repository: some/repo, version: '2'}
  b: {image: quay.io/a/c, repository: some/repo, version: '2'}
";
    assert_eq!(found("x.yaml", text), ["3=quay.io/a/b:1", "4!quay.io/a/c"]);
}

#[test]
fn arguments_of_a_stage_change_no_later_stage() {
    let text = "ARG V=1\nFROM r.example/a:$V\nARG V=2\nARG W=3\nFROM r.example/b:$V\nFROM r.example/c:$W\n";
    assert_eq!(found("Dockerfile", text), ["2=r.example/a:1", "5=r.example/b:1", "6!r.example/c:$W"]);
}

#[test]
fn here_documents_end_where_the_builder_ends_them() {
    let text = "\
FROM r.example/a:1
RUN git log \"x <<b\"
RUN cat <<EOF>/x
FROM r.example/no:1
EOF
RUN <<-'E 1' cat <<2
\tE 1
FROM r.example/no:2
2
ONBUILD RUN <<X
FROM r.example/no:3
\tX
X
RUN cat <<<word
FROM r.example/b:2
";
    let scan = scan_file("Dockerfile", text.as_bytes());
    assert_eq!(scan.problems, []);
    assert_eq!(found("Dockerfile", text), ["1=r.example/a:1", "15=r.example/b:2"]);

    let open = "FROM r.example/a:1\nRUN cat <<b\nFROM r.example/b:1\n";
    let scan = scan_file("Dockerfile", open.as_bytes());
    let [problem] = scan.problems.as_slice() else { panic!("{:?}", scan.problems) };
    assert_eq!(problem.place.to_string(), "Dockerfile:2");
    assert!(problem.reason.contains("`b`"), "{problem:?}");
    assert_eq!(found("Dockerfile", open), ["1=r.example/a:1", "3=r.example/b:1"]);
    let scan = scan_file("Dockerfile", "RUN <<a\n".repeat(100_000).as_bytes());
    assert!(scan.problems.last().is_some_and(|problem| problem.reason.contains("the rest")), "{:?}", scan.problems);
}

#[test]
fn values_of_lists_are_not_all_images() {
    for text in ["[1, true, \"apple\"]", "- a b\n- c: d\n", "- 10:30\n- 11:30\n", "- https://a.example/b\n"] {
        let scan = scan_file("x.yaml", text.as_bytes());
        assert_eq!((scan.found.len(), scan.undecided.len(), scan.problems.len()), (0, 1, 0), "{text}: {scan:?}");
    }
    assert_eq!(found("x.yaml", "[\"r.example/a:1\", \"redis\"]"), ["1!redis", "1?r.example/a:1"]);
    assert_eq!(found("x.yaml", "- team/a\n- r.example/b\n"), ["1=docker.io/team/a:latest", "2=r.example/b:latest"]);
    // The name says what is in it.
    assert_eq!(found("images.yaml", "- redis\n"), ["1=docker.io/library/redis:latest"]);
}

#[test]
fn json_values_in_a_row_are_all_read() {
    let pod = |name: &str| format!("{{\"kind\":\"Pod\",\"spec\":{{\"containers\":[{{\"image\":\"{name}\"}}]}}}}\n");
    let text = [pod("r.example/a:1"), pod("r.example/b:1"), pod("r.example/c:1")].concat();
    let scan = scan_file("stdin", text.as_bytes());
    assert_eq!((scan.found.len(), scan.problems.len()), (3, 0), "{scan:?}");
    let cut = &text[..text.len() - 5];
    let scan = scan_file("stdin", cut.as_bytes());
    assert_eq!(scan.found.len(), 2, "{scan:?}");
    let [problem] = scan.problems.as_slice() else { panic!("{:?}", scan.problems) };
    assert!(problem.reason.contains("document 3 is not read") && !problem.reason.contains("template"), "{problem:?}");
}

#[test]
fn lines_and_fields_with_images_in_texts_are_found() {
    let text = "\
kind: ConfigMap
data:
  config: |
    image: postgres:15
    image: node:18-alpine # old
    - image: 'bitnami/kubectl:1'
    \"image\": \"alpine:3\",
    {\"name\": \"x\", \"image\": \"alpine:2\"}
    image: docker.io/istio/proxyv2:1.22.1
    image: plain
  one: '{\"image\":\"alpine:1\"}'
  env: bitnami/redis:7
  flag: --img=node:20-alpine
";
    let scan = scan_file("x.yaml", text.as_bytes());
    let mut names: Vec<(usize, String)> =
        scan.found.iter().map(|found| (found.place.line, found.image.to_string())).collect();
    names.sort();
    let expected = [
        (4, "docker.io/library/postgres:15"),
        (5, "docker.io/library/node:18-alpine"),
        (6, "docker.io/bitnami/kubectl:1"),
        (7, "docker.io/library/alpine:3"),
        (8, "docker.io/library/alpine:2"),
        (9, "docker.io/istio/proxyv2:1.22.1"),
        (11, "docker.io/library/alpine:1"),
        (12, "docker.io/bitnami/redis:7"),
        (13, "docker.io/library/node:20-alpine"),
    ];
    assert_eq!(names, expected.map(|(line, name)| (line, name.to_owned())), "each once");
}
