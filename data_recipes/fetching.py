"""Fetching the pictures that rows name by URL: an explicit step with a list of hosts, before any recipe runs.

Every address is checked before a byte is asked for: https, a host on the list, and a name that resolves to public
addresses only. The connection goes to the very address that was checked, so that a name which resolves to another one a
moment later gains nothing. Redirects are not followed. What comes must be a picture within the limits of
sapo_vl.data.images; it is stored under the sha256 of its bytes. Nothing is tried twice unless the caller asks to.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sapo_vl.data.images import MAX_IMAGE_BYTES, ImageRefused, decode_image

CONNECT_S = 10.0  # to connect, and between two pieces of an answer
TOTAL_S = 60.0  # for one picture
PIECE = 1 << 16
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class NotFetched(Exception):
    """A picture that was not fetched; `reason` is what is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Where pictures may come from."""

    hosts: Collection[str]  # "images.example.org", or "mirror.local:8443" where the port is not 443
    allow_private: bool = False  # private and loopback addresses, over http too: a mirror of your own
    max_bytes: int = MAX_IMAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    secure: bool
    host: str
    port: int
    path: str


def fetch(url: str, folder: Path, rules: Rules) -> str:
    """Fetches one picture into `folder`; the name of its file there. Raises NotFetched."""
    target = _target(url, rules)
    data = _download(target, _checked_address(target, rules), rules.max_bytes)
    try:
        decode_image(data)
    except ImageRefused as error:
        raise NotFetched(f"image {error.kind}", str(error)) from error
    name = hashlib.sha256(data).hexdigest() + _suffix(data)
    path = folder / name
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.rename(path)
    return name


def _target(url: str, rules: Rules) -> _Target:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise NotFetched("not a URL", f"{url[:200]!r}: {error}") from error
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise NotFetched("not a URL", f"{url[:200]!r}")
    secure = parts.scheme == "https"
    if not secure and not rules.allow_private:
        raise NotFetched("not https", f"{url[:200]!r}")
    if parts.username is not None:
        raise NotFetched("not a URL", "an address with a user name in it")
    host = parts.hostname
    usual = 443 if secure else 80
    named = host if port in (None, usual) else f"{host}:{port}"
    if named not in rules.hosts:
        raise NotFetched("host not on the list", named)
    path = parts.path or "/"
    if not url.isascii() or any(c.isspace() for c in url):
        raise NotFetched("not a URL", f"{url[:200]!r} has characters that must be escaped")
    return _Target(secure=secure, host=host, port=port or usual, path=f"{path}?{parts.query}" if parts.query else path)


def _checked_address(target: _Target, rules: Rules) -> str:
    """An address of the host. All that its name resolves to must be allowed: one private one among them is a trap."""
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NotFetched("host not found", f"{target.host}: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        public = _is_public(address)
        if not public and not rules.allow_private:
            raise NotFetched("private address", f"{target.host} resolves to {address}")
        if public and not target.secure:
            raise NotFetched("not https", f"{target.host} resolves to the public address {address}")
    return addresses[0]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses that carry another one inside are as public as that one.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _download(target: _Target, address: str, max_bytes: int) -> bytes:
    deadline = time.monotonic() + TOTAL_S
    try:
        sock = socket.create_connection((address, target.port), timeout=CONNECT_S)
        if target.secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
    except ssl.SSLError as error:
        raise NotFetched("certificate", f"{target.host}: {error}") from error
    except OSError as error:
        raise NotFetched("no connection", f"{target.host} ({address}): {error}") from error
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.sock = sock  # set, so that it connects nowhere by itself
    # A server that sends a byte now and then never meets the limit between two pieces, so a clock hangs up.
    clock = threading.Timer(TOTAL_S, _hang_up, (sock,))
    clock.start()
    try:
        connection.request("GET", target.path, headers={"User-Agent": "sapo-vl fetch-images", "Accept": "image/*"})
        response = connection.getresponse()
        if 300 <= response.status < 400:
            raise NotFetched("redirect", f"{target.host} sends elsewhere (status {response.status})")
        if response.status != 200:
            raise NotFetched(f"status {response.status}", f"{target.host}{target.path[:100]}")
        data = _body(response, max_bytes)
    except (OSError, http.client.HTTPException) as error:
        late = time.monotonic() > deadline
        raise NotFetched("too slow" if late else "connection broke", f"{target.host}: {error!r}") from error
    finally:
        clock.cancel()
        connection.close()
    if time.monotonic() > deadline:  # what came before the clock hung up may look like all of it
        raise NotFetched("too slow", f"{target.host}: not there after {TOTAL_S:g} s")
    return data


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side was faster
        sock.shutdown(socket.SHUT_RDWR)


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    announced = response.length
    if announced is not None and announced > max_bytes:
        raise NotFetched("too many bytes", f"{announced} are announced, the limit is {max_bytes}")
    data = bytearray()
    while piece := response.read1(PIECE):
        data += piece
        if len(data) > max_bytes:
            raise NotFetched("too many bytes", f"more than {max_bytes}")
    if announced is not None and len(data) < announced:
        raise http.client.IncompleteRead(bytes(data), announced - len(data))
    return bytes(data)


def _suffix(data: bytes) -> str:
    starts = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
    return next((suffix for start, suffix in starts.items() if data.startswith(start)), ".img")
