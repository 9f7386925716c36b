"""PyTorch without its CUDA libraries, for clusters without GPUs: the trainer's image shrinks to a third.

PyPI's PyTorch for Linux is linked against 3 GB of libraries that do nothing without a GPU. This module keeps the three
small ones that PyTorch calls when it starts. It replaces the others by stand-ins: libraries with the same names and
symbols, in which every function returns an error. PyTorch then loads and finds no GPU; nothing else in it changes.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from images.tool import BuildError

STAND_INS: Final = {
    "libcublas.so.13": "libcublas.so.13",
    "libcublasLt.so.13": "libcublasLt.so.13",
    "libcudnn.so.9": "libcudnn.so.9",
    "libcufft.so.12": "libcufft.so.12",
    "libcusparse.so.12": "libcusparse.so.12",
    "libcusparseLt.so.0": "cusparseLt",
    "libnccl.so.2": "p?nccl",
    "libnvrtc.so.13": "libnvrtc.so.13",
    "libnvshmem_host.so.3": "NVSHMEM",
}
"""The CUDA libraries that PyTorch links to, and the version of their symbols, or a pattern for unversioned symbols."""

_REPLACED: Final = re.compile(r"nvidia-(?!cuda-runtime|cuda-cupti|cufile)|cuda-|triton\b")
_ERROR: Final = 100  # cudaErrorNoDevice


def without_cuda(context: Path) -> None:
    """Remove the CUDA libraries from the requirements in the trainer's context, and add stand-ins to its `overlay`."""
    requirements = context / "requirements.txt"
    requirements.write_text(filtered(requirements.read_text()))
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise BuildError(
            "TORCH=cpu reads from PyTorch what it is linked to, and this environment has no PyTorch: run `make install`"
        )
    if missing := [program for program in ("cc", "nm") if not shutil.which(program)]:
        raise BuildError(f"TORCH=cpu needs {' and '.join(missing)}: install a C compiler (Debian: apt-get install gcc)")
    directory = context / "overlay" / "torch" / "lib"
    directory.mkdir(parents=True)
    symbols = undefined_symbols((Path(torch.origin).parent / "lib").glob("lib*_*.so"))
    for library, version in STAND_INS.items():
        _compile(library, version, symbols, directory)


def filtered(requirements: str) -> str:
    """Return a requirements file without the CUDA libraries that have a stand-in or that nothing needs on a CPU."""
    entries = re.split(r"^(?=\S)", requirements, flags=re.MULTILINE)
    return "".join(entry for entry in entries if not _REPLACED.match(entry))


def undefined_symbols(libraries: Iterable[Path]) -> dict[str, set[str]]:
    """Return the symbols that libraries import, by the symbols' version; unversioned symbols are under ''."""
    symbols: dict[str, set[str]] = defaultdict(set)
    for library in libraries:
        listing = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True)
        for line in listing.stdout.splitlines():
            name, _, version = line.split()[-1].partition("@")
            symbols[version].add(name)
    return symbols


def _compile(library: str, version: str, symbols: Mapping[str, set[str]], directory: Path) -> None:
    names = sorted(symbols.get(version) or filter(re.compile(f"{version}[A-Z]").match, symbols[""]))
    if not names:
        raise BuildError(
            f"PyTorch imports nothing from {library}: its version has changed; correct images/cpu_torch.py"
        )
    source, script = directory / "source.c", directory / "versions"
    source.write_text("".join(f"int {name}(void) {{ return {_ERROR}; }}\n" for name in names))
    script.write_text(f"{version if version in symbols else ''} {{ global: *; }};\n")
    options = ["-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-w", "-s", "-Wl,--build-id=none"]
    output = [f"-Wl,-soname,{library}", f"-Wl,--version-script,{script}", "-o", str(directory / library)]
    subprocess.run(["cc", *options, *output, source], check=True)
    source.unlink()
    script.unlink()
