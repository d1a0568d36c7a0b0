#!/usr/bin/env bash
# Holds audits against expectations: pre_commit_check.sh EXPECTATIONS.toml AUDIT...
# Ends with the last exit code of `tailwise check` that is not 0.
set -uo pipefail
if ! command -v tailwise >/dev/null; then
  echo "tailwise is not installed in this environment" >&2
  exit 2
fi
expectations=$1
shift
status=0
for audit in "$@"; do
  tailwise check "$audit" --expect "$expectations" || status=$?
done
exit "$status"
