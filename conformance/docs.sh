#!/usr/bin/env bash
# Runs the commands of the pages that can be followed from top to bottom, and compares what comes out.
# usage: docs.sh BUTTRESS
set -euo pipefail
buttress=$(realpath "$1")
cd "$(dirname "$0")/.."
python3 conformance/docs.py "$buttress" docs/start/first-steps.md
