#!/usr/bin/env bash
# Installs what the scanner of this very commit needs, with the versions and hashes it was tested with, away from the
# job's own Python; the scanner itself runs from where the action was checked out.
set -euo pipefail
source_folder="$(cd "$GITHUB_ACTION_PATH/.." && pwd)"
environment="$RUNNER_TEMP/raksha"
"$RAKSHA_PYTHON" -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
  -r "$source_folder/requirements/runtime.txt"
{
  printf '#!/usr/bin/env bash\n'
  printf 'export PYTHONPATH=%q\n' "$source_folder"
  # shellcheck disable=SC2016 - the wrapper expands its own arguments
  printf 'exec %q -P -m avyay "$@"\n' "$environment/bin/python"
} >"$environment/bin/avyay"
chmod +x "$environment/bin/avyay"
