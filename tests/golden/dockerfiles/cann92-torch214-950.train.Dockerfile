# cann92-torch214-950, train: rendered by `fl images render cann92-torch214-950`, not edited by hand.
# `fl images build cann92-torch214-950` supplies what it needs: the contexts uv (its binary, what the site says) and wheels (those that no index
# has), and beside this file a folder for each step with its part of the lock, trim.sh and bytecode.py; the secret index where the site has one.
FROM scratch AS wheels

FROM quay.io/ascend/cann:9.2.0-beta.2-950-ubuntu22.04-py3.12 AS os
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
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:${PATH}
RUN --mount=type=bind,from=uv,target=/mnt --mount=type=bind,from=wheels,target=/media \
    --mount=type=bind,source=torch,target=/usr/src --mount=type=secret,id=index \
    --mount=type=cache,id=fl-uv,target=/srv,sharing=locked --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/run \
    touch /tmp/begin; \
    if [ -f /mnt/site ]; then . /mnt/site; fi; \
    if [ -f /run/secrets/index ]; then . /run/secrets/index; fi; \
    /mnt/uv venv --system-site-packages --python 3.12 "${VIRTUAL_ENV}"; \
    /mnt/uv pip install --no-deps --no-build --require-hashes --requirements /usr/src/lock.txt; \
    sh /usr/src/trim.sh "${VIRTUAL_ENV}"/lib/python3.12/site-packages /tmp/begin; \
    python -W ignore /usr/src/bytecode.py "${VIRTUAL_ENV}"/lib/python3.12/site-packages /tmp/begin /srv/bytecode; \
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
    sh /usr/src/trim.sh "${VIRTUAL_ENV}"/lib/python3.12/site-packages /tmp/begin; \
    python -W ignore /usr/src/bytecode.py "${VIRTUAL_ENV}"/lib/python3.12/site-packages /tmp/begin /srv/bytecode; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /opt -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +
RUN --mount=type=bind,from=uv,target=/mnt --mount=type=bind,from=wheels,target=/media \
    --mount=type=bind,source=own,target=/usr/src \
    --mount=type=cache,id=fl-uv,target=/srv,sharing=locked --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/run \
    touch /tmp/begin; \
    /mnt/uv pip install --no-deps --no-index /usr/src/*.whl; \
    /mnt/uv pip check; \
    echo "cann92-torch214-950" > /opt/fl/stack; \
    sh /usr/src/trim.sh "${VIRTUAL_ENV}"/lib/python3.12/site-packages /tmp/begin; \
    python -W ignore /usr/src/bytecode.py "${VIRTUAL_ENV}"/lib/python3.12/site-packages /tmp/begin /srv/bytecode; \
    touch --date "@${SOURCE_DATE_EPOCH}" /etc; \
    find /opt -xdev -newer /tmp/begin -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH}" {} +

FROM packages AS run
# What the base's set_env.sh and nnal/atb/set_env.sh export: a process that is not started by the base's entrypoint needs it too.
# The driver's libraries are mounted from the host.
ENV ASCEND_TOOLKIT_HOME=/usr/local/Ascend/ascend-toolkit/latest \
    ASCEND_HOME_PATH=/usr/local/Ascend/ascend-toolkit/latest \
    ASCEND_AICPU_PATH=/usr/local/Ascend/ascend-toolkit/latest \
    ASCEND_OPP_PATH=/usr/local/Ascend/ascend-toolkit/latest/opp \
    TOOLCHAIN_HOME=/usr/local/Ascend/ascend-toolkit/latest/toolkit \
    ATB_HOME_PATH=/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_1 \
    LD_LIBRARY_PATH=/usr/local/Ascend/ascend-toolkit/latest/lib64:/usr/local/Ascend/ascend-toolkit/latest/lib64/plugin/opskernel:/usr/local/Ascend/ascend-toolkit/latest/lib64/plugin/nnengine:/usr/local/Ascend/ascend-toolkit/latest/opp/built-in/op_impl/ai_core/tbe/op_tiling:/usr/local/Ascend/ascend-toolkit/latest/tools/aml/lib64:/usr/local/Ascend/ascend-toolkit/latest/tools/aml/lib64/plugin:/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_1/lib:/usr/local/Ascend/driver/lib64:/usr/local/Ascend/driver/lib64/common:/usr/local/Ascend/driver/lib64/driver:${LD_LIBRARY_PATH} \
    PYTHONPATH=/usr/local/Ascend/ascend-toolkit/latest/python/site-packages:/usr/local/Ascend/ascend-toolkit/latest/opp/built-in/op_impl/ai_core/tbe \
    PATH=/opt/venv/bin:/usr/local/Ascend/ascend-toolkit/latest/bin:/usr/local/Ascend/ascend-toolkit/latest/compiler/ccec_compiler/bin:/usr/local/Ascend/ascend-toolkit/latest/tools/ccec_compiler/bin:/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_1/bin:${PATH}
ENV HOME=/home/fl USER=fl LOGNAME=fl LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1
USER 1000:1000
WORKDIR /home/fl
ENTRYPOINT []
CMD ["/bin/bash"]
ARG FL_VERSION=unknown FL_REVISION=unknown FL_LOCK_SHA256=unknown FL_MATRIX_SHA256=unknown
LABEL org.opencontainers.image.title="fl-train cann92-torch214-950" \
      org.opencontainers.image.description="CANN 9.2, torch 2.14.0, Python 3.12" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="quay.io/ascend/cann:9.2.0-beta.2-950-ubuntu22.04-py3.12" \
      org.opencontainers.image.version="${FL_VERSION}" \
      org.opencontainers.image.revision="${FL_REVISION}" \
      fl.stack="cann92-torch214-950" \
      fl.lane="ascend" \
      fl.flavor="train" \
      fl.version="${FL_VERSION}" \
      fl.lock.sha256="${FL_LOCK_SHA256}" \
      fl.matrix.sha256="${FL_MATRIX_SHA256}"
