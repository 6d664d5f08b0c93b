# sidecache as an image: a first stage with a compiler makes an environment, a second one runs it.
#
#   docker build -t sidecache .
#   docker run -v $PWD/sidecache.yaml:/etc/sidecache/config/sidecache.yaml:ro sidecache
#
# Both stages must be of the same Python and the same Debian, because the environment that is copied
# names its interpreter and its C library.
ARG PYTHON=3.11

FROM python:${PYTHON}-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY lua lua
COPY policies policies
COPY proxy proxy
# The wheel of sidecache is compiled here; dependencies come as wheels. The environment has no pip.
RUN python -m pip wheel --no-cache-dir --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/sidecache \
    && python -m pip --python /opt/sidecache/bin/python install \
        --no-cache-dir --no-index --find-links /wheels sidecache \
    && /opt/sidecache/bin/sidecache --help > /dev/null

FROM python:${PYTHON}-slim-bookworm
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sidecache" \
      org.opencontainers.image.description="Redis-protocol cache proxy in front of two Redis Clusters" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Nothing is installed at run time, so nothing that installs is left.
RUN python -m pip uninstall --yes --quiet --root-user-action=ignore pip setuptools wheel
COPY --from=build /opt/sidecache /opt/sidecache
# The root file system may be read-only: no byte code is written. Log lines leave at once.
ENV PATH=/opt/sidecache/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, because Kubernetes cannot tell that a name is not root.
USER 65532:65532
WORKDIR /
EXPOSE 6379 9121
STOPSIGNAL SIGTERM
# For docker and compose; Kubernetes asks the port itself. It imports nothing of what serves and takes
# some 50 ms. An admin address that is not the default is given as SIDECACHE_ADMIN.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["sidecache", "health", "--ready"]
ENTRYPOINT ["sidecache"]
CMD ["serve", "--config", "/etc/sidecache/config/sidecache.yaml"]
