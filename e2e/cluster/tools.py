"""The programs of a cluster, built from their Go modules into `.tools/bin`.

`e2e/tools/go.mod` sets their versions. `python -m e2e.cluster.tools [NAME...]` builds the programs that are missing or
stale; without names, all of them.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
MODULE: Final = ROOT / "e2e" / "tools"
DIRECTORY: Final = ROOT / ".tools"

PACKAGES: Final = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "coredns": "github.com/coredns/coredns",
    "helm": "helm.sh/helm/v4/cmd/helm",
    "helm3": "helm.sh/helm/v3/cmd/helm",
}


class ToolError(Exception):
    """A program is missing or could not be built; the message says what to do."""


def tool(name: str) -> str:
    """Return the path of a built program.

    Raises:
        ToolError: If it was not built yet.
    """
    path = DIRECTORY / "bin" / name
    if not path.exists():
        raise ToolError(
            f"{path.relative_to(ROOT)} is missing: run `make tools-api` for the API server, `make tools` for a cluster"
        )
    return str(path)


def build(names: list[str]) -> None:
    """Build the programs that are missing or whose module file has changed, and print a line for each.

    Raises:
        ToolError: If a name is unknown or a build fails.
    """
    if unknown := set(names) - PACKAGES.keys():
        raise ToolError(f"no such program: {', '.join(sorted(unknown))}; there are {', '.join(PACKAGES)}")
    module_file = (MODULE / "go.mod").read_text()
    stale = [name for name in names if not _is_fresh(name, _stamp(name, module_file))]
    if not stale:
        return
    go = _go(module_file)
    (DIRECTORY / "bin").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(stale, 1):
        started = time.monotonic()
        print(f"[{number}/{len(stale)}] building {name} {_version(PACKAGES[name], module_file)}", flush=True)
        temporary = DIRECTORY / "bin" / f".{name}"
        command = [
            go,
            "build",
            "-trimpath",
            "-ldflags",
            _flags(name, module_file),
            "-o",
            str(temporary),
            PACKAGES[name],
        ]
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off"}
        if subprocess.run(command, cwd=MODULE, env=environment, check=False).returncode:
            raise ToolError(f"{name} could not be built from {MODULE.relative_to(ROOT)}; see the output of go above")
        temporary.rename(DIRECTORY / "bin" / name)
        _stamp_file(name).write_text(_stamp(name, module_file))
        print(f"[{number}/{len(stale)}] built {name} in {time.monotonic() - started:.0f} s", flush=True)


def _is_fresh(name: str, stamp: str) -> bool:
    stamp_file = _stamp_file(name)
    return (DIRECTORY / "bin" / name).exists() and stamp_file.exists() and stamp_file.read_text() == stamp


def _stamp_file(name: str) -> Path:
    return DIRECTORY / "bin" / f".{name}.stamp"


def _stamp(name: str, module_file: str) -> str:
    return hashlib.sha256(f"{PACKAGES[name]} {_flags(name, module_file)} {module_file}".encode()).hexdigest()


def _version(package: str, module_file: str) -> str:
    """Return the version of a package's module, which has the longest path that is a prefix of the package's."""
    required = dict(re.findall(r"^\s*(\S+) (v\S+)(?: // indirect)?$", module_file, re.MULTILINE))
    return str(required[max((path for path in required if f"{package}/".startswith(f"{path}/")), key=len)])


def _flags(name: str, module_file: str) -> str:
    """Return the linker's flags that set a program's version, on which its peers and charts depend."""
    package = PACKAGES[name]
    version = _version(package, module_file)
    major, minor = _version("k8s.io/kubernetes", module_file).removeprefix("v").split(".")[:2]
    variables: dict[str, str] = {}
    if package.startswith("k8s.io/kubernetes/"):
        at = "k8s.io/component-base/version"
        variables = {f"{at}.gitVersion": version, f"{at}.gitMajor": major, f"{at}.gitMinor": minor}
    elif package.startswith("helm.sh/"):
        module = package.removesuffix("/cmd/helm")
        variables = {f"{module}/internal/version.version": version}
        if name == "helm3":
            for at in (f"{module}/pkg/chartutil", f"{module}/pkg/lint/rules"):
                variables |= {f"{at}.k8sVersionMajor": major, f"{at}.k8sVersionMinor": minor}
    return " ".join(["-s", "-w", *(f"-X {variable}={value}" for variable, value in variables.items())])


def _go(module_file: str) -> str:
    """Return a Go toolchain that is new enough: the machine's, or a wheel in a virtual environment."""
    needed = _release(re.search(r"^go (\S+)$", module_file, re.MULTILINE)[1])  # type: ignore[index]
    found = shutil.which("go")
    if found:
        version = subprocess.run(
            [found, "env", "GOVERSION"],
            cwd="/",
            env=os.environ | {"GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=False,
        )
        if version.returncode == 0 and _release(version.stdout.removeprefix("go")) >= needed:
            return found
    environment = DIRECTORY / "go"
    if not (environment / "bin" / "go").exists():
        print(
            f"no Go {'.'.join(map(str, needed))} or newer here: installing it into {environment.relative_to(ROOT)}",
            flush=True,
        )
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(ROOT / "requirements" / "go.txt")], check=True)
    return str(environment / "bin" / "go")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def main() -> int:
    """Build the programs named as arguments, or all."""
    try:
        build(sys.argv[1:] or list(PACKAGES))
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
