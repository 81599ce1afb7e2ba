#!/usr/bin/env bash
# Install Darkroom's requirements: system programs, uv, and the locked Python packages.
# Programs that cannot be installed here are listed with instructions.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache="${DARKROOM_CACHE:-$HOME/.cache/darkroom}"
uv="${DARKROOM_UV:-uv}"
uv_version=0.13.9 # the version of the images, infra/docker

java_is_new_enough() {
  local java=java major
  [[ -n "${JAVA_HOME:-}" && -x "$JAVA_HOME/bin/java" ]] && java="$JAVA_HOME/bin/java"
  major=$("$java" -version 2>&1 | sed -nE 's/.*version "(1\.)?([0-9]+).*/\2/p' | head -n 1) || return 1
  [[ -n "$major" && "$major" -ge 17 ]]
}

go_is_new_enough() {
  local version
  version=$(go version 2>/dev/null | sed -nE 's/.*go([0-9]+)\.([0-9]+).*/\1 \2/p') || return 1
  # shellcheck disable=SC2086  # split into major and minor
  set -- $version
  [[ $# -eq 2 ]] && { [[ $1 -gt 1 ]] || [[ $2 -ge 24 ]]; }
}

has() { command -v "$1" >/dev/null 2>&1; }

missing=()
has tesseract || missing+=(tesseract-ocr)
# The packs of OCR's default setting `packs`: scripts that the default engine does not know.
packs=$(has tesseract && tesseract --list-langs 2>/dev/null || true)
for pack in kor rus ell ara heb hin tha; do
  grep -qx "$pack" <<<"$packs" || missing+=("tesseract-ocr-$pack")
done
has mvn || missing+=(maven)
has redis-server || missing+=(redis-server)
java_is_new_enough || missing+=(java)

if ((${#missing[@]})) && has apt-get && [[ $(id -u) -eq 0 ]]; then
  echo "Installing ${missing[*]} with apt-get"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || echo "apt-get update failed; using the existing package lists" >&2
  packages=()
  for name in "${missing[@]}"; do
    if [[ $name == java ]]; then
      for version in 17 21 25; do
        if apt-cache show "openjdk-$version-jre-headless" >/dev/null 2>&1; then
          name="openjdk-$version-jre-headless"
          break
        fi
      done
    fi
    packages+=("$name")
  done
  apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null || echo "apt-get could not install ${packages[*]}" >&2
fi

say_missing() { printf 'Missing: %s\n  install: %s\n' "$1" "$2" >&2; }
has tesseract || say_missing "Tesseract (OCR)" "apt-get install tesseract-ocr, or brew install tesseract"
java_is_new_enough || say_missing "Java 17 or later (runs Kafka)" "apt-get install openjdk-17-jre-headless, or https://adoptium.net"
has mvn || [[ -n $(compgen -G "$cache/kafka-*/kafka-clients-*.jar") ]] ||
  say_missing "Maven (downloads Kafka)" "apt-get install maven, or https://maven.apache.org"
has redis-server || say_missing "Redis (shared rate limits; only for tests)" "apt-get install redis-server, or brew install redis"
go_is_new_enough || [[ -x "$cache/bin/minio" ]] ||
  say_missing "Go 1.24 or later (builds MinIO; only for tests)" "https://go.dev/dl"

if ! "$uv" --version >/dev/null 2>&1; then
  echo "Installing uv $uv_version into $cache/uv"
  python3 -m venv "$cache/uv" || {
    say_missing "uv" "https://docs.astral.sh/uv, or apt-get install python3-venv and run this again"
    exit 1
  }
  "$cache/uv/bin/pip" install --quiet "uv==$uv_version"
  uv="$cache/uv/bin/uv"
fi

# The lock is tested most with 3.11; without it uv chooses or downloads a version that pyproject.toml allows.
python=()
if [[ ! -d .venv ]] && "$uv" python find --no-project 3.11 >/dev/null 2>&1; then python=(--python 3.11); fi
"$uv" sync --frozen --all-extras --group dev --compile-bytecode "${python[@]}"
