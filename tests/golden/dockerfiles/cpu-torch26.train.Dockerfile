# cpu-torch26, train: rendered by `fl images render cpu-torch26`, not edited by hand.
# `fl images build cpu-torch26` supplies what it needs: the contexts uv (its binary, what the site says) and wheels (those that no index
# has), and beside this file a folder for each step with its part of the lock, trim.sh and bytecode.py; the secret index where the site has one.
FROM scratch AS wheels

FROM debian:bookworm-slim AS os
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# the stages before the last one install
# hadolint ignore=DL3002
USER 0:0
ARG SOURCE_DATE_EPOCH=315532800
# The interpreter; torch needs nothing else of the system
# without versions: the system's archive keeps the newest ones only, and a pin would break the build at its next correction
# hadolint ignore=DL3008
RUN --mount=type=cache,id=fl-apt-lists,target=/var/lib/apt/lists,sharing=locked \
    --mount=type=cache,id=fl-apt-cache,target=/var/cache,sharing=locked \
    --mount=type=tmpfs,target=/var/log --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/run \
    touch /tmp/begin; \
    export DEBIAN_FRONTEND=noninteractive; \
    rm -f /etc/apt/apt.conf.d/docker-clean; \
    apt-get update -qq; \
    set -- -o 'Dpkg::Options::=--force-unsafe-io' -o 'Dpkg::Options::=--path-include=/usr/share/doc/*/copyright'; \
    for path in '/usr/share/doc/*' '/usr/share/info/*' '/usr/share/locale/*' '/usr/share/man/*' '/usr/lib/*/libpython3*.a' '/usr/lib/gcc/*san*.a' \
        '/usr/lib/*/lib*san.so*' '/usr/bin/*lto-dump*'; do \
        set -- -o "Dpkg::Options::=--path-exclude=${path}" "$@"; \
    done; \
    apt-get install -y -qq --no-install-recommends "$@" ca-certificates python3 >/dev/null; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /etc /opt /usr /var -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +
# uid 1000 unless the caller says otherwise; any other uid finds a home it can write to
RUN --mount=type=tmpfs,target=/tmp \
    touch /tmp/begin; \
    if ! getent group 1000 >/dev/null; then groupadd --gid 1000 fl; fi; \
    if ! getent passwd 1000 >/dev/null; then useradd --no-log-init --no-create-home --home-dir /home/fl --uid 1000 --gid 1000 fl; fi; \
    install --directory --mode 1777 --owner 1000 --group 1000 /home/fl; \
    install --directory /opt/fl; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /etc /home /opt -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +

FROM os AS packages
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG SOURCE_DATE_EPOCH=315532800
ARG UV_NO_CONFIG=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 UV_CACHE_DIR=/srv UV_FIND_LINKS=/media \
    PYTHONHASHSEED=0 DS_BUILD_OPS=0
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:${PATH}
RUN --mount=type=bind,from=uv,target=/mnt --mount=type=bind,from=wheels,target=/media \
    --mount=type=bind,source=torch,target=/usr/src --mount=type=secret,id=index \
    --mount=type=cache,id=fl-uv,target=/srv,sharing=locked --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/run \
    touch /tmp/begin; \
    if [ -f /mnt/site ]; then . /mnt/site; fi; \
    if [ -f /run/secrets/index ]; then . /run/secrets/index; fi; \
    /mnt/uv venv --python 3.11 "${VIRTUAL_ENV}"; \
    /mnt/uv pip install --no-deps --no-build --require-hashes --requirements /usr/src/lock.txt; \
    sh /usr/src/trim.sh "${VIRTUAL_ENV}"/lib/python3.11/site-packages /tmp/begin; \
    python -W ignore /usr/src/bytecode.py "${VIRTUAL_ENV}"/lib/python3.11/site-packages /tmp/begin /srv/bytecode; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /opt -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +
# the whole lock: what the layers above hold is left alone
RUN --mount=type=bind,from=uv,target=/mnt --mount=type=bind,from=wheels,target=/media \
    --mount=type=bind,source=full,target=/usr/src --mount=type=secret,id=index \
    --mount=type=cache,id=fl-uv,target=/srv,sharing=locked --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/run \
    touch /tmp/begin; \
    if [ -f /mnt/site ]; then . /mnt/site; fi; \
    if [ -f /run/secrets/index ]; then . /run/secrets/index; fi; \
    /mnt/uv pip sync --require-hashes --build-constraints /usr/src/build-constraints.txt /usr/src/lock.txt; \
    install --mode 0644 /usr/src/lock.txt /opt/fl/lock.txt; \
    sh /usr/src/trim.sh "${VIRTUAL_ENV}"/lib/python3.11/site-packages /tmp/begin; \
    python -W ignore /usr/src/bytecode.py "${VIRTUAL_ENV}"/lib/python3.11/site-packages /tmp/begin /srv/bytecode; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /opt -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +
RUN --mount=type=bind,from=uv,target=/mnt --mount=type=bind,from=wheels,target=/media \
    --mount=type=bind,source=own,target=/usr/src \
    --mount=type=cache,id=fl-uv,target=/srv,sharing=locked --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/run \
    touch /tmp/begin; \
    /mnt/uv pip install --no-deps --no-index /usr/src/*.whl; \
    /mnt/uv pip check; \
    echo "cpu-torch26" > /opt/fl/stack; \
    sh /usr/src/trim.sh "${VIRTUAL_ENV}"/lib/python3.11/site-packages /tmp/begin; \
    python -W ignore /usr/src/bytecode.py "${VIRTUAL_ENV}"/lib/python3.11/site-packages /tmp/begin /srv/bytecode; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /opt -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +

FROM packages AS run
ENV HOME=/home/fl USER=fl LOGNAME=fl LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1
USER 1000:1000
WORKDIR /home/fl
ENTRYPOINT []
CMD ["/bin/bash"]
ARG FL_VERSION=unknown FL_REVISION=unknown FL_LOCK_SHA256=unknown FL_MATRIX_SHA256=unknown
LABEL org.opencontainers.image.title="fl-train cpu-torch26" \
      org.opencontainers.image.description="torch 2.6.0, Python 3.11" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="debian:bookworm-slim" \
      org.opencontainers.image.version="${FL_VERSION}" \
      org.opencontainers.image.revision="${FL_REVISION}" \
      fl.stack="cpu-torch26" \
      fl.lane="cpu" \
      fl.flavor="train" \
      fl.version="${FL_VERSION}" \
      fl.lock.sha256="${FL_LOCK_SHA256}" \
      fl.matrix.sha256="${FL_MATRIX_SHA256}"
