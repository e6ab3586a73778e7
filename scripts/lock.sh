#!/bin/sh
# Resolves pyproject.toml into the hashed locks that every install uses. Run after changing a dependency.
set -eu
cd "$(dirname "$0")/.."
uv="${UV:-uv} pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate"
$uv --extra local --group build -o requirements/serve.lock "$@"
$uv --extra local --group build --group dev -o requirements/dev.lock "$@"
