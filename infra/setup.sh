#!/usr/bin/env bash
# Install what Darkroom needs on this machine: programs of the system, uv, and the locked Python packages.
# What cannot be installed here is named, with how to get it; what needs it says so again when it is used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache="${DARKROOM_CACHE:-$HOME/.cache/darkroom}"
uv="${DARKROOM_UV:-uv}"

java_is_new_enough() {
  local java=java major
  [[ -n "${JAVA_HOME:-}" && -x "$JAVA_HOME/bin/java" ]] && java="$JAVA_HOME/bin/java"
  major=$("$java" -version 2>&1 | sed -nE 's/.*version "(1\.)?([0-9]+).*/\2/p' | head -n 1) || return 1
  [[ -n "$major" && "$major" -ge 17 ]]
}

go_is_new_enough() {
  local said
  said=$(go version 2>/dev/null | sed -nE 's/.*go([0-9]+)\.([0-9]+).*/\1 \2/p') || return 1
  # shellcheck disable=SC2086  # two words are meant
  set -- $said
  [[ $# -eq 2 ]] && { [[ $1 -gt 1 ]] || [[ $2 -ge 24 ]]; }
}

has() { command -v "$1" >/dev/null 2>&1; }

missing=()
has tesseract || missing+=(tesseract-ocr)
has mvn || missing+=(maven)
has redis-server || missing+=(redis-server)
java_is_new_enough || missing+=(java)

if ((${#missing[@]})) && has apt-get && [[ $(id -u) -eq 0 ]]; then
  echo "Installing ${missing[*]} with apt-get"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || echo "apt-get update failed; trying with the lists that are there" >&2
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

say_missing() { printf 'Missing: %s\n  get it: %s\n' "$1" "$2" >&2; }
has tesseract || say_missing "Tesseract (reads text)" "apt-get install tesseract-ocr, or brew install tesseract"
java_is_new_enough || say_missing "Java 17 or later (runs Kafka)" "apt-get install openjdk-17-jre-headless, or https://adoptium.net"
has mvn || [[ -n $(compgen -G "$cache/kafka-*/kafka-clients-*.jar") ]] ||
  say_missing "Maven (downloads Kafka)" "apt-get install maven, or https://maven.apache.org"
has redis-server || say_missing "Redis (limits shared by gateways, for the tests alone)" "apt-get install redis-server, or brew install redis"
go_is_new_enough || [[ -x "$cache/bin/minio" ]] ||
  say_missing "Go 1.24 or later (builds MinIO, for the tests alone)" "https://go.dev/dl"

if ! "$uv" --version >/dev/null 2>&1; then
  echo "Installing uv into $cache/uv"
  python3 -m venv "$cache/uv" || {
    say_missing "uv" "https://docs.astral.sh/uv, or apt-get install python3-venv so that it can be installed here"
    exit 1
  }
  "$cache/uv/bin/pip" install --quiet uv
  uv="$cache/uv/bin/uv"
fi

# 3.11 is what the lock was tried with most; without it uv chooses (or downloads) one that pyproject.toml allows.
python=()
if [[ ! -d .venv ]] && "$uv" python find --no-project 3.11 >/dev/null 2>&1; then python=(--python 3.11); fi
"$uv" sync --frozen --all-extras --group dev "${python[@]}"
