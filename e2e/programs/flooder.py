"""Run in a job: for `args[2]` seconds, open connections to the connector at address `args[0]` and port `args[1]`.

They carry bogus tokens, requests that never end, and garbage. Prints the number of connections, and of each answer.
"""

import asyncio
import json
import secrets
import ssl
import time
from collections import Counter

AT_ONCE = 100
TIMEOUT_S = 5
context = ssl._create_unverified_context()
ends = time.monotonic() + float(args[2])
counts, answers = Counter(), Counter()


async def attack(kind):
    """Open one connection and return the first line of the answer."""
    tls = context if kind < 2 else None
    reader, writer = await asyncio.wait_for(asyncio.open_connection(args[0], int(args[1]), ssl=tls), TIMEOUT_S)
    counts["opened"] += 1
    try:
        head = f"GET /pushes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secrets.token_hex(400)}".encode()
        writer.write((head + b"\r\n\r\n", head, secrets.token_bytes(4096))[kind])
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), TIMEOUT_S)
        return line[:40].decode(errors="replace").strip() if kind < 2 else "answered garbage"
    finally:
        writer.close()


async def flood(kind):
    while time.monotonic() < ends:
        try:
            answers[await attack(kind)] += 1
        except (OSError, TimeoutError) as error:
            answers[type(error).__name__] += 1
            await asyncio.sleep(0.05)


async def main():
    print("flooding", flush=True)
    await asyncio.gather(*(flood(number % 3) for number in range(AT_ONCE)))


asyncio.run(main())
print(json.dumps({"opened": counts["opened"], "answers": answers}), flush=True)
