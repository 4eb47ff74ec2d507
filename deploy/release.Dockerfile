# The image of a release, from tested programs in dist/amd64 and dist/arm64: .github/workflows/release.yml builds it.
# The Dockerfile at the root builds the same from source. The release pins its base image by digest.
ARG RUNTIME_IMAGE=debian:trixie-slim
FROM ${RUNTIME_IMAGE}
ARG TARGETARCH
RUN apt-get update \
    && apt-get install -y -qq --no-install-recommends ca-certificates >/dev/null \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/debconf/* \
    && install -d -o 10001 -g 10001 /var/lib/imgsync && install -d /etc/imgsync
ENV HOME=/var/lib/imgsync
WORKDIR /etc/imgsync
COPY dist/${TARGETARCH}/imgsync dist/${TARGETARCH}/imgsync-worker /usr/local/bin/
USER 10001:10001
ENTRYPOINT ["imgsync"]
