"""Asks which versions of requirements.txt, and of what they ask for, have known vulnerabilities.

    python benchmarks/audit.py

`pip-audit` is installed in an environment that is thrown away, and asks the advisories of PyPI and,
where these cannot be had, those of OSV. Needs a network. The exit code is 0 where nothing is known,
1 where something is, and 2 where no advisories could be had, which says nothing of the packages.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import venv
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PIP_AUDIT = "pip-audit==2.10.1"
SERVICES = {"pypi": "PyPI", "osv": "OSV"}
# A version with advisories (CVE-2019-10906 for one). An index that is a mirror has packages and no
# advisories, and pip-audit then finds nothing and calls it none.
KNOWN = "jinja2==2.10"
RESOLVED = ("--disable-pip", "--no-deps")  # ask about just these, which are pinned


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        environment = pathlib.Path(folder)
        venv.create(environment, with_pip=True)
        python = str(environment / "bin" / "python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, "install", PIP_AUDIT]).returncode:
            print(f"error: {PIP_AUDIT} cannot be installed; see above", file=sys.stderr)
            return 2
        known = environment / "known.txt"
        known.write_text(f"{KNOWN}\n")
        for service, name in SERVICES.items():
            if not any(found["vulns"] for found in audit(python, service, known, *RESOLVED)):
                continue
            return report(audit(python, service, ROOT / "requirements.txt"), name)
    print(
        f"error: nothing is known of these packages, since the advisories of neither "
        f"{' nor '.join(SERVICES.values())} can be had from here; ask again with a network that "
        "reaches them",
        file=sys.stderr,
    )
    return 2


def audit(
    python: str, service: str, requirements: pathlib.Path, *options: str
) -> list[dict[str, Any]]:
    """What a service says of each package of a file; [] where it gives no answer."""
    command = [python, "-m", "pip_audit", "--progress-spinner=off", "--format=json"]
    command += [f"--vulnerability-service={service}", *options, "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError, TypeError):
        return []
    # One that was skipped has a reason in place of its vulnerabilities.
    return [{"version": "", "vulns": [], **package} for package in packages]


def report(packages: list[dict[str, Any]], name: str) -> int:
    """Prints the answer of a service; the exit code."""
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if not packages or skipped:
        what = f"{len(skipped)} packages ({', '.join(skipped[:10])})" if skipped else "the packages"
        print(f"error: {name} gave no answer on {what}; ask again later", file=sys.stderr)
        return 2
    found = [(package, advisory) for package in packages for advisory in package["vulns"]]
    for package, advisory in found:
        names = ", ".join([advisory["id"], *advisory.get("aliases", [])])
        fixed = ", ".join(advisory.get("fix_versions", [])) or "no version"
        print(f"{package['name']} {package['version']}: {names}; fixed in {fixed}")
    print(f"{len(packages)} packages, {len(found)} known vulnerabilities (advisories of {name})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
