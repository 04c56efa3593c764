# The image holds one file. `make image` builds the static binary first, so that nothing is pulled here: no builder, no
# base, no registry. docker, podman and buildah all build it, also offline. By hand:
#
#   CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/linux/kube-rego ./cmd/kube-rego
#   docker build -t kube-rego:dev .
#
# For another architecture build with GOARCH=… into another file and name it with --build-arg BINARY=….
FROM scratch

# No CA certificates: the API server's CA comes with the service account. Services of --opa-config name theirs
# (tls.ca_cert); a policy that is given http.send needs a CA file mounted and SSL_CERT_FILE set to it.
ARG BINARY=bin/linux/kube-rego
COPY ${BINARY} /kube-rego

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kube-rego" \
      org.opencontainers.image.description="Enforces Rego policies kept in ConfigMaps: one binary, OPA in process" \
      org.opencontainers.image.source="https://github.com/kube-rego/kube-rego" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# A number, because there is no /etc/passwd, and because runAsNonRoot can only check a number.
USER 65532:65532

EXPOSE 8443 8282
ENTRYPOINT ["/kube-rego"]
