# syntax=docker/dockerfile:1.7
# Processes with models: ocr, detector, embedder, and the query gateway, which encodes queries with CLIP.
# The image is large because torch from PyPI is the CUDA build.
#   docker build -f infra/docker/ml.Dockerfile -t darkroom:ml .

FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.11-slim-bookworm AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_CACHE_DIR=/var/cache/uv UV_HTTP_TIMEOUT=600
WORKDIR /app
# Dependencies first: this layer changes less often than the code.
RUN --mount=type=cache,target=/var/cache/uv \
    --mount=type=bind,source=pyproject.toml,target=pyproject.toml \
    --mount=type=bind,source=uv.lock,target=uv.lock \
    uv sync --frozen --no-default-groups --no-install-project --extra gateway --extra ml --extra cli
COPY . .
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --frozen --no-default-groups --no-editable --extra gateway --extra ml --extra cli

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends tesseract-ocr tesseract-ocr-kor tesseract-ocr-rus tesseract-ocr-ell \
        tesseract-ocr-ara tesseract-ocr-heb tesseract-ocr-hin tesseract-ocr-tha \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin darkroom \
    && install -d -o 10001 -g 10001 /var/cache/darkroom /models
COPY --from=build /app/.venv /app/.venv
COPY infra/docker/healthy.py /app/healthy.py
# HOME is the only writable folder for libraries when the root file system is read-only.
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp YOLO_CONFIG_DIR=/tmp \
    DARKROOM_WORKER__HTTP_HOST=0.0.0.0 DARKROOM_WORKER__HTTP_PORT=9100 \
    DARKROOM_GATEWAY__HOST=0.0.0.0 DARKROOM_GATEWAY__PORT=8080 DARKROOM_TELEMETRY__LOG_FORMAT=json \
    DARKROOM_MODELS__DIR=/models DARKROOM_MODELS__CACHE=/var/cache/darkroom
# A volume mounted here is owned by the runtime user.
RUN install -d -o 10001 -g 10001 /var/lib/darkroom/state
USER 10001:10001
WORKDIR /tmp
VOLUME ["/var/cache/darkroom"]
EXPOSE 8080 9100
# Downloading, loading and warming up a model may take minutes on the first start.
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s CMD ["python", "/app/healthy.py"]
ENTRYPOINT ["darkroom"]
CMD ["--help"]
