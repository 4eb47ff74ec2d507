# Both programs in one image: `imgsync`, the entry point, and `imgsync-worker`.
#
#   docker build -t imgsync .
#   docker run --rm imgsync sync alpine registry.example.com/mirror/alpine
#
# Imgsync reads /etc/imgsync/imgsync.yaml. Without a cluster it keeps its state under /var/lib/imgsync: use a volume there.
# Plain syntax: BuildKit, the legacy builder and podman all build it.
#
# To pin the base images, name them by digest (docs/explanation/security.md#builds):
#
#   docker build --build-arg RUNTIME_IMAGE=debian:trixie-slim@sha256:… --build-arg RUST_IMAGE=rust:1.95-slim-trixie@sha256:… .

ARG RUNTIME_IMAGE=debian:trixie-slim
ARG RUST_IMAGE=rust:1.95-slim-trixie

FROM ${RUNTIME_IMAGE} AS runtime
RUN apt-get update \
    && apt-get install -y -qq --no-install-recommends ca-certificates >/dev/null \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/debconf/* \
    && install -d -o 10001 -g 10001 /var/lib/imgsync && install -d /etc/imgsync
ENV HOME=/var/lib/imgsync
WORKDIR /etc/imgsync
# A number, so that Kubernetes can check runAsNonRoot.
USER 10001:10001
ENTRYPOINT ["imgsync"]

FROM ${RUST_IMAGE} AS build
WORKDIR /src
# Builds the dependencies first, with empty programs: this layer changes only with the manifests and Cargo.lock.
COPY Cargo.toml Cargo.lock ./
COPY common/archive/Cargo.toml common/archive/
COPY common/config/Cargo.toml common/config/
COPY common/layout/Cargo.toml common/layout/
COPY common/model/Cargo.toml common/model/
COPY common/oci/Cargo.toml common/oci/
COPY common/queue/Cargo.toml common/queue/
COPY common/rate_limit/Cargo.toml common/rate_limit/
COPY common/registry/Cargo.toml common/registry/
COPY common/store/Cargo.toml common/store/
COPY common/tls/Cargo.toml common/tls/
COPY worker/Cargo.toml worker/
COPY coordinator/Cargo.toml coordinator/
COPY coordinator/benches coordinator/benches
COPY tests/Cargo.toml tests/
RUN for crate in common/* worker coordinator tests; do mkdir "$crate/src" && touch "$crate/src/lib.rs"; done \
    && echo 'fn main() {}' | tee worker/src/main.rs >coordinator/src/main.rs \
    && cargo build --profile dist --locked --bins -p imgsync -p imgsync-worker \
    && cargo clean --profile dist -p imgsync-archive -p imgsync-config -p imgsync-layout -p imgsync-model -p imgsync-oci -p imgsync-queue -p imgsync-rate-limit -p imgsync-registry -p imgsync-store -p imgsync-tls \
        -p imgsync-worker -p imgsync
COPY common common
COPY worker worker
COPY coordinator coordinator
RUN cargo build --profile dist --locked --bins -p imgsync -p imgsync-worker

FROM runtime
COPY --from=build /src/target/dist/imgsync /src/target/dist/imgsync-worker /usr/local/bin/
