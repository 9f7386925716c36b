"""The programs of a cluster, its add-ons and monitoring, built from their Go modules into `.tools/bin`.

The files `go.mod` in `e2e/tools`, `e2e/addon-tools`, `e2e/argocd-tools` and `e2e/monitoring-tools` set their versions.
`python -m e2e.cluster.tools [NAME...]` builds the programs that are missing or stale; without names, all of them.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DIRECTORY: Final = ROOT / ".tools"

CLUSTER: Final = {
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
MONITORING: Final = {
    "collector": "hypha/e2e/monitoring-tools/collector",
    "prometheus": "github.com/prometheus/prometheus/cmd/prometheus",
    "promtool": "github.com/prometheus/prometheus/cmd/promtool",
}
ADDONS: Final = {
    "kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
    "kueue": "sigs.k8s.io/kueue/cmd/kueue",
    "cert-manager": "hypha/e2e/addon-tools/cert-manager",
}
"""Programs that people run in their clusters: an engine of NetworkPolicies, queues of jobs, issuers of certificates."""
ARGOCD: Final = {"argocd-refreshes": "hypha/e2e/argocd-tools/argocd-refreshes"}
"""Prints the refreshes of Applications that ArgoCD requests. ArgoCD needs older libraries of Kubernetes."""
PACKAGES: Final = CLUSTER | MONITORING | ADDONS | ARGOCD
MANIFESTS: Final = {
    "kueue": ("sigs.k8s.io/kueue", "charts/kueue"),
    "cert-manager": ("github.com/cert-manager/cert-manager", "deploy/crds"),
    "argocd-refreshes": ("github.com/argoproj/argo-cd/v3", "manifests"),
}
"""For each program that is installed with manifests of its module: the module, and the folder, which is kept as
`.tools/share/NAME`."""
OWN_VERSIONS: Final = {"kueue": "sigs.k8s.io/kueue"}
"""Programs that do not compile with the newest libraries of Kubernetes, and their modules. They are built in their own
module, whose file decides the versions of what they use."""
_ENVIRONMENT: Final = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off"}
_FOLDERS: Final = {"tools": CLUSTER, "monitoring-tools": MONITORING, "addon-tools": ADDONS, "argocd-tools": ARGOCD}
_TAGS: Final = "remove_all_sd"
"""Build tags. This one leaves out Prometheus' service discoveries, which are a third of its packages."""


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
            f"{path.relative_to(ROOT)} is missing: run `make tools-api` for what tests need, `make tools` for a cluster"
        )
    return str(path)


def manifests(name: str) -> Path:
    """Return the folder with a program's manifests.

    Raises:
        ToolError: If the program was not built yet.
    """
    tool(name)
    return DIRECTORY / "share" / name


def build(names: list[str]) -> None:
    """Build the programs that are missing or whose module file has changed, and print a line for each.

    Raises:
        ToolError: If a name is unknown or a build fails.
    """
    if unknown := set(names) - PACKAGES.keys():
        raise ToolError(f"no such program: {', '.join(sorted(unknown))}; there are {', '.join(PACKAGES)}")
    stale = [name for name in names if not _is_fresh(name)]
    (DIRECTORY / "bin").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(stale, 1):
        started = time.monotonic()
        module = module_of(name)
        module_file = (module / "go.mod").read_text()
        print(f"[{number}/{len(stale)}] building {name} {_version(PACKAGES[name], module_file)}", flush=True)
        temporary = DIRECTORY / "bin" / f".{name}"
        go = _go(module_file)
        command = [
            go,
            "build",
            "-trimpath",
            "-tags",
            _TAGS,
            "-ldflags",
            _flags(name, module_file),
            "-o",
            str(temporary),
            PACKAGES[name],
        ]
        built_in = _downloaded(go, module, OWN_VERSIONS[name]) if name in OWN_VERSIONS else module
        if subprocess.run(command, cwd=built_in, env=os.environ | _ENVIRONMENT, check=False).returncode:
            raise ToolError(f"{name} could not be built from {module.relative_to(ROOT)}; see the output of go above")
        if name in MANIFESTS:
            path, folder = MANIFESTS[name]
            _replace_files(DIRECTORY / "share" / name, _downloaded(go, module, path) / folder)
        temporary.rename(DIRECTORY / "bin" / name)
        _stamp_file(name).write_text(_stamp(name))
        print(f"[{number}/{len(stale)}] built {name} in {time.monotonic() - started:.0f} s", flush=True)


def module_of(name: str) -> Path:
    """Return the folder of the Go module that a program is built from."""
    return ROOT / "e2e" / next(folder for folder, programs in _FOLDERS.items() if name in programs)


def _downloaded(go: str, module: Path, path: str) -> Path:
    """Return the folder of a module that ours requires, in Go's cache of modules."""
    version = _version(path, (module / "go.mod").read_text())
    command = [go, "mod", "download", "-json", f"{path}@{version}"]
    done = subprocess.run(
        command, cwd=module, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ToolError(f"{path} {version} could not be downloaded: {done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])


def _replace_files(target: Path, source: Path) -> None:
    """Copy all files of a folder to another one that holds nothing else afterwards."""
    shutil.rmtree(target, ignore_errors=True)
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())  # its mode in Go's cache is read-only


def _is_fresh(name: str) -> bool:
    stamp_file = _stamp_file(name)
    return (DIRECTORY / "bin" / name).exists() and stamp_file.exists() and stamp_file.read_text() == _stamp(name)


def _stamp_file(name: str) -> Path:
    return DIRECTORY / "bin" / f".{name}.stamp"


def _stamp(name: str) -> str:
    """Return a digest of everything that decides what is built."""
    module = module_of(name)
    module_file = (module / "go.mod").read_text()
    source = "".join(path.read_text() for path in sorted(module.glob(f"{name}/*.go")))
    kept = " ".join(MANIFESTS.get(name, ()))
    return hashlib.sha256(
        f"{PACKAGES[name]} {kept}{_flags(name, module_file)} {module_file}{source}".encode()
    ).hexdigest()


def _version(package: str, module_file: str) -> str:
    """Return the version of a package's module, which has the longest path that is a prefix of the package's.

    A package of our own has none.
    """
    required = dict(re.findall(r"^\s*(\S+) (v\S+)(?: // indirect)?$", module_file, re.MULTILINE))
    paths = [path for path in required if f"{package}/".startswith(f"{path}/")]
    return str(required[max(paths, key=len)]) if paths else ""


def _flags(name: str, module_file: str) -> str:
    """Return the linker's flags that set a program's version, on which its peers and charts depend."""
    package = PACKAGES[name]
    version = _version(package, module_file)
    variables: dict[str, str] = {}
    if name in CLUSTER:
        major, minor = _version("k8s.io/kubernetes", module_file).removeprefix("v").split(".")[:2]
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
