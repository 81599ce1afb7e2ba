# syntax=docker/dockerfile:1.7
# Processes without models: ingest gateway, router, fetcher, sanitizer, resizer, barcodes, indexer, topics.
#   docker build -f infra/docker/slim.Dockerfile -t darkroom:slim .

FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.11-slim-bookworm AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_CACHE_DIR=/var/cache/uv
WORKDIR /app
# Dependencies first: this layer changes less often than the code.
RUN --mount=type=cache,target=/var/cache/uv \
    --mount=type=bind,source=pyproject.toml,target=pyproject.toml \
    --mount=type=bind,source=uv.lock,target=uv.lock \
    uv sync --frozen --no-default-groups --no-install-project --extra gateway --extra agents --extra cli
COPY . .
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --frozen --no-default-groups --no-editable --extra gateway --extra agents --extra cli

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin darkroom
COPY --from=build /app/.venv /app/.venv
COPY infra/docker/healthy.py /app/healthy.py
# HOME is the only writable folder for libraries when the root file system is read-only.
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    DARKROOM_WORKER__HTTP_HOST=0.0.0.0 DARKROOM_WORKER__HTTP_PORT=9100 \
    DARKROOM_GATEWAY__HOST=0.0.0.0 DARKROOM_GATEWAY__PORT=8080 DARKROOM_TELEMETRY__LOG_FORMAT=json
# A volume mounted here is owned by the runtime user.
RUN install -d -o 10001 -g 10001 /var/lib/darkroom/state
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080 9100
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "/app/healthy.py"]
ENTRYPOINT ["darkroom"]
CMD ["--help"]
