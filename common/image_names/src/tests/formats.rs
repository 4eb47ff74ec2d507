//! Formats beside manifests.

use super::found;
use crate::{Certainty, ImageList, scan_file};

#[test]
fn lists_are_read_line_by_line() {
    let text = "# images\r\nnginx\r\n\r\n// old\r\ndocker.io/library/nginx:latest\r\nrancher/rancher:v2.8.5  # main\r\n\
                Not/AnImage:1\r\na b\r\n\"quay.io/x/y:1\",\r\n";
    assert_eq!(
        found("rancher-images.txt", text),
        [
            "2=docker.io/library/nginx:latest",
            "5=docker.io/library/nginx:latest",
            "6=docker.io/rancher/rancher:v2.8.5",
            "7!Not/AnImage:1",
            "8!a b",
            "9=quay.io/x/y:1"
        ]
    );
    assert_eq!(found("images.json", "[\"a/b:1\", \"c\"]"), ["1=docker.io/a/b:1", "1=docker.io/library/c:latest"]);
}

#[test]
fn compose_files_are_read_with_the_defaults_of_their_variables() {
    let text = "\
x-base: &base
  image: r.example/base:1
services:
  web:
    image: ${REGISTRY:-docker.io}/team/web:${TAG:-1.0}
    volumes: ['./data:/data:ro', {type: image, source: r.example/models:1, target: /m}]
    environment:
      SIDECAR: quay.io/x/side:2
      REDIS: redis:6379
  db:
    image: postgres:${PG}
  inherited:
    <<: *base
  built:
    build: {context: ., additional_contexts: {base: 'docker-image://alpine:3.20', src: ./src}}
    image: team/built:dev
  only-built:
    build: .
";
    assert_eq!(
        found("docker-compose.yml", text),
        [
            "2=r.example/base:1",
            "5=docker.io/team/web:1.0",
            "6=r.example/models:1",
            "8?quay.io/x/side:2",
            "11!postgres:${PG}",
            "15=docker.io/library/alpine:3.20",
            "16?docker.io/team/built:dev",
        ]
    );
}

#[test]
fn dockerfiles_are_read_without_their_stages() {
    let text = "\
# syntax=docker/dockerfile:1.7
ARG VERSION=1.22
ARG BASE=golang:${VERSION}-alpine
ARG UNSET
FROM --platform=$BUILDPLATFORM ${BASE} AS build
RUN --mount=type=bind,from=ghcr.io/x/tools:2,target=/tools \\
    # a comment
    go build ./...
RUN <<EOT
FROM not/an:image
EOT
FROM build AS test
FROM scratch AS empty
FROM gcr.io/distroless/static:nonroot
COPY --from=build /app /app
COPY --chown=1:1 --from=0 /a /b
COPY --from=r.example/files:3 /x /x
ONBUILD COPY --from=nginx:1.25 /etc/nginx /n
FROM ${UNSET}
";
    assert_eq!(
        found("Dockerfile", text),
        [
            "1=docker.io/docker/dockerfile:1.7",
            "5=docker.io/library/golang:1.22-alpine",
            "6=ghcr.io/x/tools:2",
            "14=gcr.io/distroless/static:nonroot",
            "17=r.example/files:3",
            "18=docker.io/library/nginx:1.25",
            "19!${UNSET}",
        ]
    );
}

#[test]
fn charts_and_kustomizations_list_what_they_know() {
    let chart = "\
apiVersion: v2
name: app
version: 1.0.0
annotations:
  helm.sh/images: |
    - name: app
      image: r.example/app:1
      condition: app.enabled
  artifacthub.io/images: |
    - {name: proxy, image: 'r.example/proxy:2'}
";
    assert_eq!(found("Chart.yaml", chart), ["7=r.example/app:1", "10=r.example/proxy:2"]);
    let kustomization = "\
resources: [deployment.yaml]
images:
- {name: app, newName: r.example/app, newTag: v2}
- {name: proxy, newName: r.example/proxy}
";
    assert_eq!(found("kustomization.yaml", kustomization), ["3=r.example/app:v2", "4!r.example/proxy"]);
}

#[test]
fn values_that_may_be_unused_are_perhaps() {
    let values = "image:\n  repository: bitnami/nginx\n  tag: 1.25.5\nmetrics:\n  image: r.example/m:1\nother:\n  image: {repository: x/y, tag: ''}\n";
    assert_eq!(found("values.yaml", values), ["2?docker.io/bitnami/nginx:1.25.5", "5?r.example/m:1"]);
}

#[test]
fn templates_are_listed_and_the_other_documents_are_read() {
    let text = "\
kind: Pod
spec: {containers: [{name: a, image: 'r.example/a:1'}]}
---
{{- if .Values.enabled }}
kind: Pod
spec:
  containers:
  - image: {{ .Values.image }}
  - image: r.example/b:2
{{- end }}
---
kind: Pod
spec: {containers: [{name: c, image: 'r.example/c:3'}]}
";
    let scan = scan_file("x.yaml", text.as_bytes());
    let [problem] = scan.problems.as_slice() else { panic!("{:?}", scan.problems) };
    assert!(
        problem.reason.contains("document 2 is not read") && problem.reason.contains("helm template"),
        "{problem:?}"
    );
    assert_eq!(
        found("x.yaml", text),
        ["2=r.example/a:1", "8!{{ .Values.image }}", "9?r.example/b:2", "13=r.example/c:3"]
    );
}

#[test]
fn an_image_that_is_sure_somewhere_is_sure() {
    let mut list = ImageList::default();
    list.add(&mut scan_file("values.yaml", b"x: r.example/a:1\ny: r.example/b:1"));
    list.add(&mut scan_file("images.txt", b"r.example/a:1\nr.example/a:1"));
    assert_eq!((list.count(Certainty::Sure), list.count(Certainty::Perhaps)), (1, 1));
    let (image, listed) = list.iter(Certainty::Sure).next().unwrap();
    assert_eq!((image.to_string().as_str(), listed.place_count, listed.places.len()), ("r.example/a:1", 3, 3));
}
