"""A small model hub: serves the API that huggingface_hub lists and downloads models with, from a directory.

Set HF_ENDPOINT=http://127.0.0.1:PORT for the client.
"""

import asyncio
import socket
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import FileResponse, JSONResponse

from hypha_contracts import command_line
from hypha_devnet.events import Events
from hypha_devnet.roles.repositories import DEFAULT_REVISION, HubError, Repositories, Snapshot, not_found, read_access

Authorization = Annotated[str | None, Header()]

_SHUTDOWN_S: Final = 2


class _File(FileResponse):
    chunk_size = 1 << 20


def build(repositories: Repositories) -> FastAPI:
    """Build the hub's HTTP API."""
    api = FastAPI(title="Hypha devnet model hub", docs_url=None, redoc_url=None)

    @api.exception_handler(HubError)
    def refused(_: Request, error: HubError) -> JSONResponse:
        headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
        return JSONResponse({"error": str(error)}, error.status, headers)

    @api.get("/health")
    def health() -> dict[str, bool]:
        return {"healthy": True}

    def snapshot(repository: str, authorization: Authorization = None, revision: str = DEFAULT_REVISION) -> Snapshot:
        return repositories.snapshot(repository, revision, _token(authorization))

    Requested = Annotated[Snapshot, Depends(snapshot)]  # noqa: N806 - a type

    @api.get("/api/models/{repository:path}/tree/{revision}")
    @api.get("/api/models/{repository:path}/tree/{revision}/{folder:path}")
    def tree(snapshot: Requested, folder: str = "", recursive: bool = False) -> Any:
        return _tree(snapshot, folder and f"{folder}/", recursive)

    @api.get("/api/models/{repository:path}/refs")
    def refs(repository: str, authorization: Authorization = None) -> Any:
        commits = {
            name: snapshot(repository, authorization, name).commit for name in repositories.revisions(repository)
        }
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in commits.items()
        ]
        return {"branches": branches, "tags": [], "converts": []}

    @api.get("/api/models/{repository:path}")
    @api.get("/api/models/{repository:path}/revision/{revision}")
    def model(snapshot: Requested) -> Any:
        return _model(snapshot)

    @api.api_route("/{repository:path}/resolve/{revision}/{name:path}", methods=["GET", "HEAD"])
    def resolve(snapshot: Requested, name: str, authorization: Authorization = None) -> FileResponse:
        file = snapshot.file(name, _token(authorization))
        headers = {"ETag": f'"{file.sha256}"', "X-Repo-Commit": snapshot.commit}
        return _File(file.path, headers=headers, filename=file.path.name)

    return api


def _token(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _model(snapshot: Snapshot) -> dict[str, Any]:
    siblings = [
        {"rfilename": file.name, "size": file.size_bytes, "blobId": file.sha256} for file in snapshot.files.values()
    ]
    return {
        "id": snapshot.repository,
        "modelId": snapshot.repository,
        "sha": snapshot.commit,
        "private": snapshot.private,
        "gated": "manual" if snapshot.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }


def _tree(snapshot: Snapshot, prefix: str, recursive: bool) -> list[dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for file in snapshot.files.values():
        if not file.name.startswith(prefix):
            continue
        *folders, _ = file.name[len(prefix) :].split("/")
        for depth in range(1, len(folders) + 1):
            folder = prefix + "/".join(folders[:depth])
            if recursive or depth == 1:
                entries.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": snapshot.commit})
        if recursive or not folders:
            entry = {"type": "file", "path": file.name, "size": file.size_bytes, "oid": file.sha256}
            entries[file.name] = entry
    if prefix and not entries:
        raise not_found("EntryNotFound", f"{snapshot.repository} has no folder {prefix!a}")
    return list(entries.values())


app = command_line.new_app("hypha-devnet hub")


@app.command()
def hub(
    root: Annotated[Path, typer.Option(help="Holds owner/name/...; other revisions are owner/name@revision/...")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 chooses a free one.")] = "127.0.0.1:0",
    tokens: Annotated[
        Path | None, typer.Option(help='TOML file: "owner/name" = ["token"] is private, {gated = ["token"]} gated.')
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="Write the address to standard output as JSON.")] = False,
) -> None:
    """Serve model repositories to huggingface_hub clients (HF_ENDPOINT=http://HOST:PORT)."""
    try:
        repositories = Repositories(root, read_access(tokens) if tokens else {})
        listener = _listen(listen)
    except (OSError, ValueError) as error:
        command_line.fail(str(error), 2)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    typer.echo(f"Serving {root} at {url}", err=True)
    asyncio.run(_serve(build(repositories), listener, Events.to_stdout(events), url))


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise ValueError(f"--listen {address}: write it as HOST:PORT")
    return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


async def _serve(api: FastAPI, listener: socket.socket, events: Events, url: str) -> None:
    server = uvicorn.Server(uvicorn.Config(api, log_level="warning", timeout_graceful_shutdown=_SHUTDOWN_S))
    serving = asyncio.create_task(server.serve([listener]))
    events.emit("listening", url=url)
    await serving
