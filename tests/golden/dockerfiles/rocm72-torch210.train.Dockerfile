# rocm72-torch210, train: rendered by `fl images render rocm72-torch210`, not edited by hand.
# `fl images build rocm72-torch210` supplies what it needs: the contexts uv (its binary, what the site says) and wheels (those that no index
# has), and beside this file a folder for each step with its part of the lock, trim.sh and bytecode.py; the secret index where the site has one.
FROM scratch AS wheels

FROM rocm/pytorch:rocm7.2.4_ubuntu24.04_py3.12_pytorch_release_2.10.0 AS os
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# the stages before the last one install
# hadolint ignore=DL3002
USER 0:0
ARG SOURCE_DATE_EPOCH=315532800
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
# The base's own interpreter: torch, Triton and ROCm in it belong together and stay as they are. The step fails where a file of torch changed;
# only what is new is trimmed and compiled.
RUN --mount=type=bind,from=uv,target=/mnt --mount=type=bind,from=wheels,target=/media \
    --mount=type=bind,source=full,target=/usr/src --mount=type=secret,id=index \
    --mount=type=cache,id=fl-uv,target=/srv,sharing=locked --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/run \
    touch /tmp/begin; \
    if [ -f /mnt/site ]; then . /mnt/site; fi; \
    if [ -f /run/secrets/index ]; then . /run/secrets/index; fi; \
    python="$(command -v python3)"; \
    "${python}" -c 'import sys; sys.exit(f"Python {sys.version}") if sys.version_info[:2] != (3, 12) else None'; \
    "${python}" -c 'import importlib.metadata as m; assert m.version("torch").split("+")[0] == "2.10.0", m.version("torch")'; \
    site="$("${python}" -c 'import importlib.metadata as m; print(m.distribution("torch").locate_file(""))')"; \
    find "${site}"/torch "${site}"/torch-*.dist-info -type f ! -name '*.pyc' -printf '%p %s %T@\n' | sort > /tmp/before; \
    /mnt/uv pip install --python "${python}" --break-system-packages --no-deps --require-hashes \
        --build-constraints /usr/src/build-constraints.txt --requirements /usr/src/lock.txt; \
    if ! command -v python >/dev/null; then ln -s "${python}" "$(dirname "${python}")/python"; fi; \
    install --mode 0644 /usr/src/lock.txt /opt/fl/lock.txt; \
    sh /usr/src/trim.sh "${site}" /tmp/begin rocm72; \
    "${python}" -W ignore /usr/src/bytecode.py "${site}" /tmp/begin /srv/bytecode; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /opt /usr -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +; \
    find "${site}"/torch "${site}"/torch-*.dist-info -type f ! -name '*.pyc' -printf '%p %s %T@\n' | sort | cmp - /tmp/before
RUN --mount=type=bind,from=uv,target=/mnt --mount=type=bind,from=wheels,target=/media \
    --mount=type=bind,source=own,target=/usr/src \
    --mount=type=cache,id=fl-uv,target=/srv,sharing=locked --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/run \
    touch /tmp/begin; \
    python="$(command -v python3)"; \
    /mnt/uv pip install --python "${python}" --break-system-packages --no-deps --no-index /usr/src/*.whl; \
    echo "rocm72-torch210" > /opt/fl/stack; \
    site="$("${python}" -c 'import importlib.metadata as m; print(m.distribution("fl").locate_file(""))')"; \
    sh /usr/src/trim.sh "${site}" /tmp/begin rocm72; \
    "${python}" -W ignore /usr/src/bytecode.py "${site}" /tmp/begin /srv/bytecode; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /opt /usr -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +

FROM packages AS run
ENV HOME=/home/fl USER=fl LOGNAME=fl LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1
USER 1000:1000
WORKDIR /home/fl
ENTRYPOINT []
CMD ["/bin/bash"]
ARG FL_VERSION=unknown FL_REVISION=unknown FL_LOCK_SHA256=unknown FL_MATRIX_SHA256=unknown
LABEL org.opencontainers.image.title="fl-train rocm72-torch210" \
      org.opencontainers.image.description="ROCM 7.2.4, torch 2.10.0, Python 3.12" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="rocm/pytorch:rocm7.2.4_ubuntu24.04_py3.12_pytorch_release_2.10.0" \
      org.opencontainers.image.version="${FL_VERSION}" \
      org.opencontainers.image.revision="${FL_REVISION}" \
      fl.stack="rocm72-torch210" \
      fl.lane="rocm" \
      fl.flavor="train" \
      fl.version="${FL_VERSION}" \
      fl.lock.sha256="${FL_LOCK_SHA256}" \
      fl.matrix.sha256="${FL_MATRIX_SHA256}"
