#!/usr/bin/env bash
# The operator and the layers need torch alone: in an environment that has nothing else, the first
# two Python blocks of README.md run, and the theory and the names of other libraries import.
set -euo pipefail
cd "$(dirname "$0")/.."
readme=$PWD/README.md
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" -c constraints/lock.txt torch
"${pip[@]}" --no-deps .
cd "$folder"
venv/bin/python -W ignore - "$readme" <<'PYTHON'
import importlib.util
import re
import sys

assert importlib.util.find_spec("numpy") is None, "numpy is there: this environment proves nothing"
for block in re.findall(r"```python\n(.*?)```", open(sys.argv[1]).read(), re.DOTALL)[:2]:
    exec(block, {})
import sigmoid_attention.integrations.flash_attn
import sigmoid_attention.integrations.flash_sigmoid
import sigmoid_attention.integrations.triton_sigmoid
import sigmoid_attention.integrations.softmax_detection
import sigmoid_attention.theory.regularity
import sigmoid_attention.theory.universality

print("with torch alone: all well")
PYTHON
