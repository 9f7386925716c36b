"""Run in a job: search for secrets. `args[0]`: by name, the texts to search for, each written backwards."""

import json
import os
import re
import stat

MAX_FILE_BYTES = 32 << 20
TOKEN = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}")
needles = {what: text[::-1].encode() for what, text in json.loads(args[0]).items()}
secrets, writable, files = [], set(), 0


def look(path, content):
    secrets.extend(f"{what} in {path}" for what, needle in needles.items() if needle in content)
    if TOKEN.search(content):
        secrets.append(f"a token in {path}")


def tried(path):
    """Whether the job can create a file in a directory."""
    probe = os.path.join(path, "probe")
    try:
        with open(probe, "w"):
            os.unlink(probe)
    except OSError:
        return False
    return True


for directory, folders, names in os.walk("/"):
    if directory == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys")]
    if tried(directory):
        writable.add(directory)
    for name in names:
        path = os.path.join(directory, name)
        try:
            about = os.lstat(path)
            if stat.S_ISREG(about.st_mode) and about.st_size < MAX_FILE_BYTES:
                files += 1
                with open(path, "rb") as file:
                    look(path, file.read())
        except OSError:
            continue
for path in (
    "/var/run/secrets/kubernetes.io/serviceaccount/token",
    "/var/run/hypha/token",
    "/etc/hypha/identity/tls.key",
    "/job/state",
):
    if os.path.exists(path):
        secrets.append(f"{path} is there")
processes = [name for name in os.listdir("/proc") if name.isdigit()]
for process in processes:
    for what in ("environ", "cmdline"):
        try:
            with open(f"/proc/{process}/{what}", "rb") as file:
                look(f"/proc/{process}/{what}", file.read())
        except OSError:
            continue
found = {
    "secrets": secrets,
    "writable": sorted(writable),
    "files": files,
    "processes": len(processes),
    "uid": os.getuid(),
}
print(json.dumps(found), flush=True)
