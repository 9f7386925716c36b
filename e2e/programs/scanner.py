"""Run in a job: connect to every port of every given address, and send a request where that succeeds.

`args[0]`: {address: [port, ...]}. Prints {"address:port": {"plain": first line, "tls": answer}}.
"""

import asyncio
import json
import ssl

TIMEOUT_S = 3
AT_ONCE = 200
PATHS = ("/", "/api/v1/secrets", "/pods", "/pushes", "/metrics")
context = ssl._create_unverified_context()


async def connects(address, port, tls=None):
    """Return a connection, or None."""
    try:
        return await asyncio.wait_for(asyncio.open_connection(address, port, ssl=tls), TIMEOUT_S)
    except ssl.SSLError as error:
        return f"TLS: {error.reason or error}"
    except (OSError, TimeoutError) as error:
        return None if tls is None else f"closed: {type(error).__name__}"


async def ask(address, port, path, tls):
    """Return the first line of the answer to an HTTP request, or how the connection ended."""
    connection = await connects(address, port, tls)
    if not isinstance(connection, tuple):
        return str(connection)
    reader, writer = connection
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        line = await asyncio.wait_for(reader.readline(), TIMEOUT_S)
        return line.decode(errors="replace").strip() or "closed"
    except ssl.SSLError as error:
        return f"TLS: {error.reason or error}"
    except (OSError, TimeoutError) as error:
        return f"closed: {type(error).__name__}"
    finally:
        writer.close()


async def scan(targets):
    """Return the answers of all open ports."""
    limit, found = asyncio.Semaphore(AT_ONCE), {}

    async def knock(address, port):
        async with limit:
            connection = await connects(address, port)
            if connection is None:
                return
            connection[1].close()
            questions = [(how, path) for how in ("plain", "tls") for path in PATHS]
            answers = (ask(address, port, path, context if how == "tls" else None) for how, path in questions)
            found[f"{address}:{port}"] = {
                f"{how} {path}": answer
                for (how, path), answer in zip(questions, await asyncio.gather(*answers), strict=True)
            }

    await asyncio.gather(*(knock(address, port) for address, ports in targets.items() for port in ports))
    return found


print(json.dumps(asyncio.run(scan(json.loads(args[0])))), flush=True)
