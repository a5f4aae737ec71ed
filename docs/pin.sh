#!/usr/bin/env bash
# Writes docs/constraints.txt: exact versions of everything that the extras and development groups need, for Python 3.11
# to 3.13 on every system, with those of the environment in .venv where it has a package. Full TensorRT is left out: its
# wheels are not in the ordinary index.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$(mktemp)
trap 'rm -f "$here"' EXIT
uv pip freeze | grep '==' | sed 's/^onnxruntime-gpu==\(.*\)/&\nonnxruntime==\1/' >"$here" # the development group has one of the two
extras=$(sed -n '/^\[project.optional-dependencies\]/,/^\[project.scripts\]/s/^\([a-z-]*\) = \[.*/\1/p' pyproject.toml)
options=()
for extra in $extras; do
    [ "$extra" = tensorrt ] || options+=(--extra "$extra")
done
{
    echo "# Exact versions with which the tests passed; docs/install.md says how to use them, docs/pin.sh writes them."
    uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --constraint "$here" \
        "${options[@]}" --group dev --group bench --group docs pyproject.toml | grep -v "^-e "
} >docs/constraints.txt
