# The image `vllm`: modelassay beside vLLM on vLLM's own image, whose torch and every other package it keeps.
# Made by `ci/image vllm`, or from the top of the checkout by `docker build -f docker/vllm.Dockerfile .`; see docker/README.md.
# These values are written by `modelassay images lock`.
ARG BASE=vllm/vllm-openai:v0.29.0@sha256:c2914767605584b6d8f45686b82de173ecc99e781897aa3d0a66dacd72c51ae1
ARG BASE_DIGEST=sha256:c2914767605584b6d8f45686b82de173ecc99e781897aa3d0a66dacd72c51ae1
ARG IMAGE=vllm
ARG VERSION=0.1.0
ARG LOCK_SHA256=6e2df157816fe6aed62914ac09577b06553249589d279e830bd51a1164774dc1
ARG REVISION=unknown
ARG SOURCE_DATE_EPOCH=1767225600

# The three stages below are the same text in every Dockerfile here; a test holds them together.
FROM ${BASE} AS toolchain
USER root
# Triton compiles its launcher when a kernel first runs, so the GPU images keep what is added here.
RUN set -eu; missing=; \
    command -v c++ >/dev/null || missing=g++; \
    header=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")'); \
    [ -f "$header" ] || missing="$missing python3-dev"; \
    [ -z "$missing" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing \
                           && rm -rf /var/lib/apt/lists/* /var/log/*; }

FROM toolchain AS dependencies
ARG BASE
ARG BASE_DIGEST
ARG IMAGE
ARG LOCK_SHA256
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_FIND_LINKS=/wheels PYTHONDONTWRITEBYTECODE=1
# Another base without its digest would carry the pinned one's in its label.
RUN case "$BASE" in *@*) [ "${BASE##*@}" = "$BASE_DIGEST" ];; *) [ -z "$BASE_DIGEST" ];; esac \
    || { echo "BASE is '$BASE', BASE_DIGEST is '$BASE_DIGEST': give both, BASE_DIGEST= where there is none" >&2; exit 1; }
COPY docker/wheels /wheels
COPY ci/constraints.txt docker/locks/build.txt docker/locks/${IMAGE}.txt /locks/
RUN echo "$LOCK_SHA256  /locks/$IMAGE.txt" | sha256sum --check --quiet
# Environments that see the base's packages and change none of them. The base's pip serves both. All files get a fixed
# time, and bytecode that does not carry it; torch has a few files that only a later Python can compile.
RUN set -eu; python3 -m pip check >/locks/before 2>/dev/null || true; \
    python3 -m venv --without-pip /opt/tools; \
    python3 -m venv --without-pip --system-site-packages /opt/modelassay; \
    python3 -m pip --python /opt/tools/bin/python install -q --no-deps --require-hashes -r /locks/build.txt; \
    python3 -m pip --python /opt/modelassay/bin/python install -q --no-deps --require-hashes --ignore-installed \
      --only-binary :all: --no-compile -r "/locks/$IMAGE.txt"; \
    /opt/modelassay/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/modelassay/lib || true; \
    find /opt/modelassay -exec touch --no-dereference --date=@315532800 {} +

FROM dependencies AS builder
WORKDIR /source
COPY pyproject.toml README.md ./
COPY docker/images.lock.json docker/
COPY kernels kernels
COPY suites suites
COPY bench bench
ARG SOURCE_DATE_EPOCH
# Apart, in /own, so that a change of the project's own code makes a small layer beside that of the dependencies.
RUN set -eu; export PATH="$PATH:/opt/tools/bin"; \
    python3 -m pip --python /opt/tools/bin/python wheel -q --no-build-isolation --no-deps -w /dist .; \
    python3 -m pip --python /opt/modelassay/bin/python install -q --no-deps --no-index --no-compile --no-warn-script-location --root /own /dist/*.whl; \
    /opt/modelassay/bin/python -m compileall -q -s /own --invalidation-mode unchecked-hash /own/opt/modelassay/lib; \
    find /own -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; \
    cp -a /own/opt/modelassay/. /opt/modelassay
# What the base had wrong before is not ours; a torch that is not the pinned one, or no compiled kernels, would be.
RUN set -eu; \
    python3 -m pip --python /opt/modelassay/bin/python check >/locks/after \
      || { if grep -vxFf /locks/before /locks/after; then exit 1; fi; }; \
    /opt/modelassay/bin/python -c 'import torch, modelassay_kernels._native; print("torch==" + torch.__version__.split("+")[0])' \
      | grep -xFf /locks/constraints.txt

FROM toolchain
COPY --from=dependencies /opt/modelassay /opt/modelassay
COPY --from=builder /own/opt/modelassay /opt/modelassay
COPY docker/entrypoint.sh /usr/local/bin/modelassay-entrypoint
RUN mkdir -p /home/modelassay /runs && chmod 0775 /home/modelassay /runs && chown 65532:0 /home/modelassay /runs
ENV PATH=/opt/modelassay/bin:${PATH}
ARG BASE
ARG BASE_DIGEST
ARG IMAGE
ARG VERSION
ARG REVISION
ARG LOCK_SHA256
# By this a run knows that it is in an image, and which; `--in container` gives the reference that was asked for.
ENV MODELASSAY_IMAGE=modelassay/${IMAGE}:${VERSION}
LABEL org.opencontainers.image.title="modelassay ${IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      org.modelassay.image="${IMAGE}" \
      org.modelassay.lock.sha256="${LOCK_SHA256}"
# The default place of run directories, ./runs, is the folder to mount: /runs.
WORKDIR /
ENTRYPOINT ["/usr/local/bin/modelassay-entrypoint"]
CMD ["--help"]
