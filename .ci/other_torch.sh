#!/usr/bin/env bash
# Runs the quick suite on another torch than the pinned one: a version, or "newest". It comes from the
# index of CPU builds (TORCH_INDEX) or, where that is out of reach, from the registry, whose builds
# bring gigabytes of CUDA packages. Where neither has it, says why, and ends with status 0.
set -euo pipefail
cd "$(dirname "$0")/.."
asked="$1"
index="${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
venv=".soak/torch-$asked"
pip() { "$venv/bin/pip" --disable-pip-version-check --quiet "$@"; }

"${PYTHON:-python3}" -m venv "$venv"
if [ "$asked" = newest ]; then
  # By the registry, whatever a constraint of this machine would take.
  asked=$("$venv/bin/pip" index versions torch 2>/dev/null | sed -n '1s/^torch (\(.*\))$/\1/p') || true
  if [ -z "$asked" ]; then
    echo "skipped: the registry does not say which torch is the newest"
    exit 0
  fi
fi
wanted="torch==$asked"
# All else as ever, but torch and what it brings.
grep -vE '^(torch|sympy|networkx|fsspec|filelock|typing_extensions)==' constraints.txt > "$venv/constraints.txt"
if ! said=$(pip install --index-url "$index" --retries 1 --timeout 20 "$wanted" 2>&1); then
  echo "torch $asked cannot be had from $index: $(echo "$said" | grep -m 1 ERROR); trying the registry"
  if ! said=$(pip install "$wanted" 2>&1); then
    echo "skipped: torch $asked cannot be had from the registry: $(echo "$said" | grep -m 1 ERROR)"
    exit 0
  fi
fi
pip install -c "$venv/constraints.txt" -e '.[dev]'
"$venv/bin/python" -c 'import torch; print("torch", torch.__version__)'
"$venv/bin/python" -m pytest -q
