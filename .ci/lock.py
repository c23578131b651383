"""Write requirements.lock from pyproject.toml: python .ci/lock.py [CONSTRAINT ...], or `make lock`.

pip resolves the dependencies for the platform that it runs on. The dependencies' own markers then tell which packages
the other platforms need, and which ones they do without. The CUDA packages are left out. They belong to a build of
torch, which pins them itself, and a CPU build has none.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CUDA = ("nvidia-", "cuda-", "triton")
PLATFORMS = {
    "linux": {"platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "darwin": {"platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "win32": {"platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}


def declared() -> list[str]:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]
    return [*pyproject["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"]["test"]]


def resolve(requirements: list[str]) -> dict[str, dict]:
    """Return, by name, the metadata of every package that pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", report, *requirements], check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {canonicalize_name(package["name"]): package for package in packages}


def reachable(roots: list[str], packages: dict[str, dict], platform: str) -> set[str]:
    """Return the names of the packages that `roots` lead to on `platform`, including those that extras need.

    A package without metadata leads to no others.
    """
    environment = {**default_environment(), "sys_platform": platform, **PLATFORMS[platform]}
    todo, seen = [(Requirement(root), "") for root in roots], set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen and not name.startswith(CUDA):
                seen.add((name, wanted))
                needs = packages.get(name, {}).get("requires_dist", [])
                todo += [(Requirement(line), wanted) for line in needs]
    return {name for name, _ in seen}


def write(text: str) -> None:
    """Write requirements.lock, completely or not at all. The package, which can do that, may not be installed yet."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        aside = Path(folder, "requirements.lock")
        aside.write_text(text, encoding="utf-8")
        aside.replace(ROOT / "requirements.lock")


def main(constraints: list[str]) -> None:
    roots, asked = declared(), [*declared(), *constraints]
    packages = resolve(asked)
    # On Windows, we support only its Linux subsystem. Packages that only win32 needs are therefore not locked.
    supported = ("linux", "darwin")
    while missing := set().union(*(reachable(roots, packages, on) for on in supported)) - set(packages):
        asked += sorted(missing)
        packages = resolve(asked)
    needed = {platform: reachable(roots, packages, platform) for platform in PLATFORMS}
    lines = []
    for name in sorted(set(packages) & set().union(*needed.values())):
        on = [platform for platform in PLATFORMS if name in needed[platform]]
        marker = {3: "", 2: "; sys_platform != 'win32'", 1: f"; sys_platform == '{on[0]}'"}[len(on)]
        lines.append(f"{name}=={packages[name]['version'].split('+')[0]}{marker}\n")
    write("".join(lines))
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
