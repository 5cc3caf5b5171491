"""HTTP to one vLLM server: requests, and what can go wrong with them. Nothing is retried here.

Retries are in dispatch.py, which servers are in use in pool.py, what the routes take and give in v0_32_http.py.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import Any

import httpx

CONNECT_S = 5.0  # to open a connection
MAX_BYTES = 1 << 30  # of an answer; routes of a group of long responses reach hundreds of millions
MESSAGE = 300  # characters of an error's text that are kept


class ServerFault(RuntimeError):
    """A server did not do what it was asked for. The message says what happened, without the server's name."""


class Unreachable(ServerFault):
    """Nothing listens there, or it cannot be reached."""


class NoAnswer(ServerFault):
    """It was asked and kept silent for as long as it was given."""


class BadAnswer(ServerFault):
    """What came back is cut off, cannot be read, or belongs to another question."""


class Refusal(ServerFault):
    """It answered with an HTTP status other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def open_http() -> httpx.AsyncClient:
    """For the calls of one event loop, to any number of servers.

    Connections are not kept: vLLM closes one after an error and after five idle seconds, and the next request on it
    would look like a death. Proxies that the environment names are for other things than our own servers.
    """
    return httpx.AsyncClient(
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        trust_env=False,
        verify=_certificates(),
    )


@functools.cache
def _certificates() -> ssl.SSLContext:
    """For https; reading them takes longer than all the rest of a small sync."""
    return httpx.create_ssl_context(trust_env=False)


async def ask(
    http: httpx.AsyncClient,
    url: str,
    method: str,
    path: str,
    *,
    within: float | None,
    json: Any = None,
    params: dict[str, str] | None = None,
) -> bytes:
    """The body of the answer. `within` bounds the whole exchange, in seconds; None: the caller does.

    Raises one of the faults above.
    """
    try:
        async with (
            asyncio.timeout(within),
            http.stream(method, url + path, json=json, params=params) as response,
        ):
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MAX_BYTES:
                    raise BadAnswer(f"the answer to {path} is of more than {MAX_BYTES} bytes")
    except TimeoutError:
        raise NoAnswer(f"no answer to {path} within {within:g} s") from None
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Unreachable(f"it cannot be reached ({error or 'the connection timed out'})") from error
    except httpx.RequestError as error:  # also what cannot be decompressed
        raise BadAnswer(f"the connection broke during {path} ({error or type(error).__name__})") from error
    if response.status_code != 200:
        text = " ".join(content.decode(errors="replace").split())[:MESSAGE]
        raise Refusal(response.status_code, f"{path} gave status {response.status_code}: {text}")
    return bytes(content)
