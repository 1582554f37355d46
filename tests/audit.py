"""`make audit`: known vulnerabilities of what is installed, by pip-audit.

A found one fails. Where the advisory service cannot be asked it says so and passes: nothing was found out then.
"""

import json
import subprocess
import sys
from typing import Any

SECONDS = 300


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """Exit status and what to say of pip-audit's JSON report."""
    asked = [entry for entry in report["dependencies"] if "skip_reason" not in entry]
    skipped = [entry["name"] for entry in report["dependencies"] if "skip_reason" in entry]
    found = [
        f"{entry['name']} {entry['version']}: {own['id']}, fixed in {', '.join(own['fix_versions']) or 'none yet'}"
        for entry in asked
        for own in entry["vulns"]
    ]
    if not asked:
        return 0, f"NOT AUDITED: the advisory service knows none of {len(skipped)} packages, or cannot be reached here"
    lines = [f"{len(asked)} packages audited, {len(found)} known vulnerabilities", *found]
    if skipped:
        lines.append(f"not known to the advisory service: {', '.join(sorted(skipped))}")
    return int(bool(found)), "\n".join(lines)


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--format", "json"]
    command += ["--progress-spinner", "off"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
        report = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        reason = done.stderr.strip().splitlines()[-1:] if isinstance(error, json.JSONDecodeError) else [str(error)]
        print(f"NOT AUDITED: the advisory service cannot be asked here ({''.join(reason)[:300]})")
        return 0
    code, text = verdict(report)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
