"""The agent's door: HTTP with a bearer token, JSON in and out, every size and time limited."""

import json
import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from nas.errors import ConfigError, NasError
from nas.latency.agent import Agent
from nas.latency.file_store import too_large
from nas.latency.protocol import (
    MAX_JSON_BODY_BYTES,
    PROTOCOL_HEADER,
    VERSION_HEADER,
    Refusal,
    error_answer,
    is_authorised,
    skew,
)

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
SILENT_S = 30.0  # a connection that says nothing for so long is closed
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class AgentServer(ThreadingHTTPServer):
    """Serves an Agent on a host and port; port 0 takes a free one (see `port`)."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, agent: Agent, token: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.agent, self.token = agent, token
        self.uploads = threading.Lock()  # one at a time: each is held in memory
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error}). Choose another --host or --port."
            ) from error
        if host not in LOOPBACK:
            logger.warning(
                "listening on %s: whoever is on that network can try tokens and read what is sent. "
                "Better listen on 127.0.0.1 and come through `ssh -L`",
                host,
            )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def service_actions(self) -> None:
        """Look after silent clients, twice a second."""
        self.agent.sweep()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread of its own, unless there are too many."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle one connection and give its place free."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note a connection that broke; there is nobody to tell."""
        logger.debug("connection of %s broke", client_address, exc_info=True)

    def server_close(self) -> None:
        """Stop listening and end the session."""
        super().server_close()
        self.agent.close()


class _Handler(BaseHTTPRequestHandler):
    server: AgentServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hybrid-nas", ""
    timeout: ClassVar[float] = SILENT_S
    connection: socket

    def do_GET(self) -> None:  # noqa: N802  the library's name
        self._serve(self._get)

    def do_PUT(self) -> None:  # noqa: N802
        self._serve(self._put)

    def do_POST(self) -> None:  # noqa: N802
        self._serve(self._post)

    def do_DELETE(self) -> None:  # noqa: N802
        self._serve(self._delete)

    def _serve(self, work: Callable[[list[str]], dict[str, Any]]) -> None:
        self.close_connection = True  # one request each: what was not read cannot confuse the next
        try:
            self._admit()
            steps = urlsplit(self.path).path.split("/")
            if steps[:2] != ["", "v1"]:
                raise Refusal("NotThere", "there is nothing at this address.")
            status, answer = 200, work(steps[2:])
        except NasError as error:
            status, answer = error_answer(error)
        except TimeoutError:
            return  # the client stopped in the middle of its request
        except Exception:  # the top of a server: one request fails, not the agent
            logger.exception("a request failed")
            answer = {"error": {"type": "DeviceError", "message": "the agent failed; see its log."}}
            status = 500
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _admit(self) -> None:
        if not is_authorised(self.headers.get("Authorization"), self.server.token):
            raise Refusal("WrongToken", "the token is not this agent's. Copy its token file.")
        versions = self.headers.get(PROTOCOL_HEADER), self.headers.get(VERSION_HEADER)
        problem = skew(*versions, who="the client")
        if problem is not None:
            raise Refusal("VersionSkew", problem)

    # ------------------------------------------------------------ the verbs
    def _get(self, steps: list[str]) -> dict[str, Any]:
        if steps != ["target"]:
            raise _nothing()
        words = parse_qs(urlsplit(self.path).query).get("words")
        return self.server.agent.describe(words[0][:500] if words else None)

    def _put(self, steps: list[str]) -> dict[str, Any]:
        if len(steps) != 2 or steps[0] != "files":
            raise _nothing()
        with self.server.uploads:
            raw = self._body(self.server.agent.store.max_file_bytes)
            self.server.agent.store.put(steps[1], raw)
        return {"bytes": len(raw)}

    def _post(self, steps: list[str]) -> dict[str, Any]:
        agent, value = self.server.agent, self._json()
        if steps == ["sessions"]:
            return agent.begin(*_only(value, "client", "target", "timeout_s", "loads", "processes"))
        if len(steps) != 3 or steps[0] != "sessions":
            raise _nothing()
        if steps[2] == "load":
            return agent.load(steps[1], *_only(value, "name", "sha256"))
        if steps[2] == "run":
            return agent.run(steps[1], *_only(value, "visits", "turn"))
        if steps[2] == "unload":
            _only(value)
            return agent.unload(steps[1])
        raise _nothing()

    def _delete(self, steps: list[str]) -> dict[str, Any]:
        if len(steps) != 2 or steps[0] != "sessions":
            raise _nothing()
        return self.server.agent.end(steps[1])

    # ------------------------------------------------------------ bodies
    def _body(self, limit_bytes: int) -> bytes:
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()) or "Transfer-Encoding" in self.headers:
            raise ConfigError("a request must say its Content-Length.")
        size_bytes = int(text[:20])
        if size_bytes > limit_bytes:
            raise too_large(size_bytes, limit_bytes)
        raw = self.rfile.read(size_bytes)
        if len(raw) < size_bytes:
            raise ConfigError(f"the body ended after {len(raw)} of {size_bytes} bytes.")
        return raw

    def _json(self) -> dict[str, Any]:
        try:
            value = json.loads(self._body(MAX_JSON_BODY_BYTES), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the body is not JSON ({type(error).__name__}).") from error
        if not isinstance(value, dict):
            raise ConfigError("the body must be a JSON object.")
        return value

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request, without its token, for -vv."""
        logger.debug("%s %s", self.client_address[0], format % args)


def _only(value: dict[str, Any], *names: str) -> list[Any]:
    """Return the values of exactly these keys."""
    if set(value) != set(names):
        raise ConfigError(f"the body must have the keys {', '.join(names) or '(none)'} only.")
    return [value[name] for name in names]


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _nothing() -> Refusal:
    return Refusal("NotThere", "there is nothing at this address.")
