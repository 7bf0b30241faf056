#!/usr/bin/env bash
# Runs the scan. Inputs arrive as variables, never as text in a script: they may come from strangers' pull requests.
set -uo pipefail

fail() {
  printf '::error title=RAKSHA::%s\n' "$1"
  exit 2
}

levels=(critical high medium low info)
threshold="${RAKSHA_SEVERITY_THRESHOLD:-high}"
fail_on="${RAKSHA_FAIL_ON:-}"
[ -n "$fail_on" ] || fail_on="$threshold"

shown=()
known=false
for level in "${levels[@]}"; do
  shown+=(--severity "$level")
  if [ "$level" = "$threshold" ]; then
    known=true
    break
  fi
done
"$known" || fail "severity_threshold must be critical, high, medium, low or info."
case "$fail_on" in
  critical | high | medium | low | info) fail_argument="$fail_on" ;;
  never) fail_argument=critical ;;
  *) fail "fail_on must be critical, high, medium, low, info or never." ;;
esac

report="$RUNNER_TEMP/raksha-report.json"
arguments=(scan "${shown[@]}" --fail-on "$fail_argument" --github
  --sarif "$RAKSHA_SARIF_FILE" --markdown "$GITHUB_STEP_SUMMARY" --json-file "$report")
[ -z "${RAKSHA_CONFIG:-}" ] || arguments+=(--config "$RAKSHA_CONFIG")

diff="${RAKSHA_DIFF:-}"
if [ "$diff" = auto ]; then
  diff=""
  [ -z "${GITHUB_BASE_REF:-}" ] || diff="origin/$GITHUB_BASE_REF"
fi
[ -z "$diff" ] || arguments+=("--diff=$diff")

paths=()
while IFS= read -r path; do
  [ -z "$path" ] || paths+=("$path")
done <<<"${RAKSHA_PATHS:-.}"
[ "${#paths[@]}" -gt 0 ] || paths=(.)

rm -f "$report"
"$RUNNER_TEMP/raksha/bin/avyay" "${arguments[@]}" -- "${paths[@]}"
code=$?

if [ -f "$report" ]; then
  "$RUNNER_TEMP/raksha/bin/python" - "$report" "$RAKSHA_SARIF_FILE" >>"$GITHUB_OUTPUT" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1], encoding="utf-8"))
summary = report["summary"]
print(f"verdict={report['verdict']}")
print(f"findings={sum(summary.values())}")
print(f"critical={summary['critical']}")
print(f"high={summary['high']}")
print(f"sarif_file={sys.argv[2].splitlines()[0]}")
PYTHON
fi

case "$code" in
  1) [ "$fail_on" != never ] || code=0 ;;
  3) if [ "${RAKSHA_ALLOW_INCOMPLETE:-false}" = true ] && [ -f "$report" ]; then code=0; fi ;;
esac
exit "$code"
