"""`python -m images.release [--dry-run]`: build a release, push its images, and pin them in the chart's archive.

Environment: that of `images.build`. REGISTRY is where the images go; without it, nothing is pushed and the chart keeps
its tags. The archives are those of `images.dist`, in dist/, with `images.txt`: each image by its digest.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from images import build, dist
from images.contexts import IMAGES, ROOT
from images.tool import BuildError, find_tool

_LIST: Final = "images.txt"


def chart_key(image: str) -> str:
    """Return the key of an image in the chart's values."""
    first, *rest = image.split("-")
    return first + "".join(part.title() for part in rest)


def pinned(values: str, registry: str, digests: Mapping[str, str]) -> str:
    """Return the text of the chart's values with a registry and digests, by the images' names in the chart."""
    values = _replaced(values, r"^(images:\n(?:  .*\n)*?  registry: ).*$", registry)
    for image, digest in digests.items():
        values = _replaced(values, rf"^(  {chart_key(image)}:\n(?:    .*\n)*?    digest: )\"\"$", digest)
    return values


def _replaced(text: str, pattern: str, value: str) -> str:
    replaced, count = re.subn(pattern, lambda match: f"{match[1]}{value}", text, flags=re.MULTILINE)
    if count != 1:
        raise BuildError(f"the chart's values have {count} places like {pattern}: correct images/release.py")
    return replaced


def check_versions(root: Path, settings: build.Settings) -> None:
    """Check that chart and images have the same version. BuildError if they differ."""
    chart = yaml.safe_load((root / dist.CHART / "Chart.yaml").read_text())
    if chart["appVersion"] != settings.tag:
        raise BuildError(f"the chart's appVersion is {chart['appVersion']} and TAG is {settings.tag}: make them equal")


def check_clean(root: Path) -> None:
    """Check that the release would be that of a commit. BuildError if files differ from it."""
    changed = subprocess.run(["git", "-C", root, "status", "--porcelain"], check=True, capture_output=True, text=True)
    if changed.stdout:
        raise BuildError(f"the checkout differs from its commit: commit or remove\n{changed.stdout}")


def plan(settings: build.Settings, *, push: bool) -> list[str]:
    """Return what a release does, for people."""
    names = [settings.reference(image.name) for image in IMAGES]
    pushes = [f"push {name}" for name in names] if push else ["push nothing, because REGISTRY is not set"]
    chart = f"with the digests of {settings.registry}" if push else "with tags"
    return [*(f"build {name}" for name in names), *pushes, f"package wheel, source, requirements and the chart {chart}"]


def release(settings: build.Settings, tool_name: str | None, *, push: bool) -> list[str]:
    """Build, push and package; return the references of the pushed images by digest. BuildError."""
    names = [image.name for image in IMAGES]
    if build.main([*names, "--no-archive"]) != 0:
        raise BuildError("an image could not be built")
    tool = find_tool(tool_name)
    digests = {name: tool.push(settings.reference(name)) for name in names} if push else {}
    values = None
    if push:
        of_chart = {image.name: digests[image.name] for image in IMAGES if image.in_chart}
        values = pinned((ROOT / dist.VALUES).read_text(), settings.registry, of_chart)
    directory = ROOT / "dist"
    dist.build(ROOT, directory, values)
    references = [f"{settings.registry}/{name}@{digest}" for name, digest in digests.items()]
    (directory / _LIST).write_text("".join(f"{reference}\n" for reference in references))
    return references


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a release, or print what it would do; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m images.release", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the steps and do none of them")
    options = parser.parse_args(arguments)
    push = bool(os.environ.get("REGISTRY"))
    try:
        settings = build.settings_of(dict(os.environ))
        check_versions(ROOT, settings)
        if options.dry_run:
            print(*plan(settings, push=push), sep="\n")
            return 0
        check_clean(ROOT)
        print(*release(settings, os.environ.get("CONTAINER_TOOL"), push=push), sep="\n")
    except (BuildError, subprocess.CalledProcessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
