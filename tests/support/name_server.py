"""A name server on loopback, which answers with the TXT records that a test gives it."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from dns.asyncresolver import Resolver

TTL_S = 60


def _answer(query: dns.message.Message, records: Mapping[str, Sequence[str]]) -> dns.message.Message:
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    (question,) = query.question
    texts = records.get(question.name.to_text(omit_final_dot=True))
    if texts is None:
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif texts:
        quoted = [" ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200)) for text in texts]
        response.answer.append(dns.rrset.from_text(question.name, TTL_S, "IN", "TXT", *quoted))
    return response


@contextmanager
def name_server(records: Mapping[str, Sequence[str]]) -> Iterator[Resolver]:
    """Serve TXT records by name; yields a resolver that asks this server alone. `records` may change meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while data := sock.recvfrom(4096):
                if not data[0]:
                    return
                sock.sendto(_answer(dns.message.from_wire(data[0]), records).to_wire(), data[1])

        thread = Thread(target=serve)
        thread.start()
        try:
            resolver = Resolver(configure=False)
            resolver.nameservers, resolver.port = ["127.0.0.1"], sock.getsockname()[1]
            yield resolver
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
                stop.sendto(b"", sock.getsockname())
            thread.join()
