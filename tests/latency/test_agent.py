"""An agent and its client over real HTTP: refused, away, killed, lying, and in order."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from nas.block import parse
from nas.errors import ConfigError, CorruptFile, DeviceError, StorageError, TryAgain
from nas.latency import LatencyTable, ProfileConfig, profile
from nas.latency.agent import Agent, target_here
from nas.latency.agent_http import AgentServer
from nas.latency.bench import Bench, Visit
from nas.latency.file_store import FileStore, check_onnx
from nas.latency.measure import child_bench
from nas.latency.protocol import (
    PROTOCOL,
    PROTOCOL_HEADER,
    VERSION_HEADER,
    error_answer,
    make_token,
    read_token,
    release,
)
from nas.latency.remote import RemoteAgent
from nas.target import Device, Target

TOKEN = "test-token-of-32-characters-long"
BLOCKS = [
    parse(text)
    for text in ("stem_r32_i3_c8-16_b1_a1", "mb4d_r8_c16_h32_p3", "head_r8_i16_o10_bn_d0")
]
CONFIG = ProfileConfig(samples=4, spread_s=0.0, time_limit_s=60.0, batch=3)
VISIT = Visit(name="dw_r4_c8", prime=1, loops=2, samples=3)
Served = Callable[..., AbstractContextManager[AgentServer]]


@pytest.fixture
def serve(tmp_path: Path, target: Target, make_bench: Any) -> Served:
    """Return what runs an agent of a made-up device in a thread."""

    @contextmanager
    def run(
        bench: Bench | None = None, *, of: Target = target, port: int = 0, **options: Any
    ) -> Iterator[AgentServer]:
        limits = {key: options.pop(key) for key in list(options) if key.startswith("max_")}
        options |= {"max_processes": options.pop("processes", 8)}
        store = FileStore(tmp_path / f"files-{of.device.slug}", **limits)
        shared = bench or make_bench()
        benches = options.pop("benches", lambda target, config: nullcontext(shared))
        agent = Agent(store, benches=benches, parse=lambda words: of, **options)
        with AgentServer(agent, TOKEN, port=port) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()

    return run


def client(server: AgentServer, *, patience_s: float = 10.0, token: str = TOKEN) -> RemoteAgent:
    return RemoteAgent(f"http://127.0.0.1:{server.port}", token, patience_s=patience_s)


def ask(
    server: AgentServer, method: str, path: str, body: Any = b"", **headers: str | None
) -> tuple[int, dict[str, Any]]:
    """Send one request as it is, and return its status and JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given: dict[str, str | None] = {
        "Authorization": f"Bearer {TOKEN}",
        PROTOCOL_HEADER: str(PROTOCOL),
        VERSION_HEADER: release(),
        "Content-Length": str(len(raw)),
    }
    given |= {key.replace("_", "-"): value for key, value in headers.items()}
    connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest(method, path)
    for key, value in given.items():
        if value is not None:
            connection.putheader(key, value)
    connection.endheaders(raw)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text)


def save_conv(path: Path, name: str = "dw_r4_c8", note: str = "") -> Path:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"], name=name)
    model = helper.make_model(helper.make_graph([node], name, value[:1], value[1:]))
    model.doc_string = note
    onnx.save(model, str(path))
    return path


# ---------------------------------------------------------------- the way it should be
def test_a_profile_through_an_agent_is_the_device_s_and_the_same_as_on_it(
    serve: Served, make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path
) -> None:
    there, here = make_bench(jitter=0.0), make_bench(jitter=0.0)
    with serve(there) as server:
        agent = client(server)
        found = agent.target("onnxruntime,fp32,b1,t1")
        assert found == target
        table = profile(
            BLOCKS, found, tmp_path / "far.json", CONFIG, benches=agent.bench, export=export
        )
    near = profile(BLOCKS, target, tmp_path / "near.json", CONFIG, benches=on(here), export=export)
    assert table.missing(BLOCKS) == [] and table.target.id == target.id
    assert table.estimate(BLOCKS) == pytest.approx(near.estimate(BLOCKS), rel=1e-4)


def test_a_file_is_sent_once_and_again_if_it_was_evicted(
    serve: Served, tmp_path: Path, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = save_conv(tmp_path / "a.onnx"), save_conv(tmp_path / "b.onnx", note="x" * 50)
    sent: list[int] = []

    class Counting(FileStore):
        def put(self, sha256: str, raw: bytes) -> None:
            sent.append(len(raw))
            super().put(sha256, raw)

    with serve() as server:
        server.agent.store = Counting(tmp_path / "s", max_store_bytes=b.stat().st_size + 60)
        for path in (a, a, b, a):
            with client(server).bench(target, CONFIG) as bench:
                bench.load("dw_r4_c8", path)
    assert sent == [a.stat().st_size, b.stat().st_size, a.stat().st_size]


def test_two_devices_are_profiled_at_once(
    serve: Served, make_bench: Any, export: Any, target: Target, tmp_path: Path
) -> None:
    other = replace(target, device=Device(cpu="other-cpu-2", arch="aarch64", cores=4))
    slower = make_bench(cost=lambda parts: 0.5 * len(parts), jitter=0.0)
    tables: dict[str, LatencyTable] = {}

    def work(server: AgentServer) -> None:
        agent = client(server)
        found = agent.target("onnxruntime")
        path = tmp_path / f"{found.id}.json"
        tables[found.device.slug] = profile(
            BLOCKS, found, path, CONFIG, benches=agent.bench, export=export
        )

    with serve(make_bench(jitter=0.0)) as one, serve(slower, of=other) as two:
        threads = [threading.Thread(target=work, args=(server,)) for server in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(tables) == {target.device.slug, other.device.slug}
    first, second = (tables[item.device.slug] for item in (target, other))
    assert second.estimate(BLOCKS) > 2 * first.estimate(BLOCKS)


def test_long_work_is_asked_for_in_pieces(serve: Served, target: Target, tmp_path: Path) -> None:
    class Slow:
        asked: list[int] = []  # noqa: RUF012  of this test only

        def load(self, name: str, path: Path) -> float:
            return 3000.0

        def unload(self) -> None: ...

        def run(self, visits: Any, *, turn: int = 0) -> list[Any]:
            import numpy as np

            self.asked.append(len(visits))
            return [np.full((visit.samples, 3), 3000.0) for visit in visits]

        def seconds(self) -> float:
            return 0.0

    with serve(Slow()) as server, client(server).bench(target, CONFIG) as bench:
        bench.load("dw_r4_c8", save_conv(tmp_path / "a.onnx"))
        assert len(bench.run([replace(VISIT, loops=1, prime=0, samples=1)] * 10)) == 10
    assert Slow.asked == [3, 3, 3, 1]


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize("given", [None, "", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_without_the_token_nothing_is_answered(serve: Served, given: str | None) -> None:
    with serve() as server:
        for method, path in (("GET", "/v1/target"), ("POST", "/v1/sessions"), ("GET", "/")):
            status, answer = ask(server, method, path, Authorization=given)
            assert status == 401 and answer["error"]["type"] == "WrongToken"
        with pytest.raises(ConfigError, match="token is not this agent's"):
            client(server, token="another-token-that-is-wrong").target("onnxruntime")


@pytest.mark.parametrize(
    ("versions", "names"),
    [
        ({PROTOCOL_HEADER: "1"}, "protocol 1 of"),
        ({VERSION_HEADER: "9.9"}, r"hybrid-nas 9\.9"),
        ({VERSION_HEADER: None}, "hybrid-nas None"),
    ],
)
def test_another_version_is_refused_by_the_agent_naming_both(
    serve: Served, versions: dict[str, str | None], names: str
) -> None:
    import re

    with serve() as server:
        status, answer = ask(server, "GET", "/v1/target", **versions)
    message = answer["error"]["message"]
    assert (
        status == 426 and re.search(names, message) and f"this is protocol {PROTOCOL} of" in message
    )


ABOUT: dict[str, Any] = {"client": "0" * 32, "timeout_s": 5, "loads": 1, "processes": 1}
GARBAGE: list[tuple[str, str, Any, int]] = [
    ("POST", "/v1/sessions", b"not json", 400),
    ("POST", "/v1/sessions", b"[" * 100_000, 400),
    ("POST", "/v1/sessions", b"[1]", 400),
    ("POST", "/v1/sessions", {"client": "a"}, 400),
    ("POST", "/v1/sessions", {**ABOUT, "client": "../x", "target": {}}, 400),
    ("POST", "/v1/sessions", {**ABOUT, "target": {"x": 1}}, 400),
    ("POST", "/v1/sessions", {**ABOUT, "target": {}, "timeout_s": -1}, 400),
    ("POST", "/v1/sessions", {**ABOUT, "target": {}, "loads": 10**9}, 400),
    ("POST", "/v1/sessions", {**ABOUT, "target": {}, "loads": True}, 400),
    ("POST", "/v1/sessions", {**ABOUT, "target": {}, "processes": 9}, 400),
    ("POST", "/v1/sessions", {**ABOUT, "target": {}, "processes": 0}, 400),
    ("POST", "/v1/sessions/abc/run", {"visits": [], "turn": -1}, 400),
    ("POST", "/v1/sessions", b'{"client": 1, "target": {}, "timeout_s": NaN, "loads": 1}', 400),
    ("POST", "/v1/sessions/abc/run", {"visits": [], "turn": 0}, 404),
    ("POST", "/v1/sessions/abc/shell", {}, 404),
    ("PUT", "/v1/files/../../etc/passwd", b"x", 404),
    ("PUT", "/v1/files/" + "%2e" * 32, b"x", 400),
    ("PUT", "/v1/files/" + "0" * 64, b"x", 400),
    ("PUT", "/v1/files/" + hashlib.sha256(b"x").hexdigest(), b"x", 400),
    ("GET", "/v1/files/" + "0" * 64, b"", 404),
    ("GET", "/etc/passwd", b"", 404),
    ("DELETE", "/v1", b"", 404),
]


def test_garbage_is_refused_and_the_agent_goes_on(serve: Served, tmp_path: Path) -> None:
    with serve() as server:
        for method, path, body, expected in GARBAGE:
            status, answer = ask(server, method, path, body)
            assert (status, set(answer)) == (expected, {"error"}), (path, body, answer)
            assert "Traceback" not in answer["error"]["message"]
        status, _ = ask(server, "POST", "/v1/sessions", b"{}", Content_Length="abc")
        assert status == 400
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.sendall(b"\x16\x03\x01 no http\r\n\r\n")
            raw.recv(100)
        assert ask(server, "GET", "/v1/target")[0] == 200
    assert list(tmp_path.rglob("*.onnx")) == []


def test_what_is_too_large_is_refused_before_it_is_read(
    serve: Served, tmp_path: Path, target: Target
) -> None:
    path = save_conv(tmp_path / "a.onnx", note="x" * 5000)
    with serve(max_file_bytes=1000) as server:
        huge = {"Content_Length": str(10**12)}
        assert ask(server, "PUT", f"/v1/files/{'0' * 64}", b"", **huge)[0] == 413
        assert ask(server, "POST", "/v1/sessions", b"", **huge)[0] == 413
        agent = client(server)
        agent.target("onnxruntime")
        with agent.bench(target, CONFIG) as bench, pytest.raises(ConfigError, match="max-file-mb"):
            bench.load("dw_r4_c8", path)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "list of 1 to"),
        ([["dw_r4_c8", 0, 1, 1, False]] * 2001, "list of 1 to"),
        ([["dw_r4_c8", 0, 1, 10**9, False]], "0 to|1 to"),
        ([["dw_r4_c8", -1, 1, 1, False]], "0 to"),
        ([["dw_r4_c8", 0, True, 1, False]], "1 to"),
        ([["dw_r4_c8", 0, 1.5, 1, False]], "1 to"),
        ([["dw_r4_c8", 0, 1, 1, 1]], "cold must be"),
        ([["dw_r4_c8", 10**6, 10**6, 1000, False]], "120 s of runs"),
        ([["dw_r4_c8", 0, 1, 1]], "a visit is"),
        ("dw_r4_c8", "list of 1 to"),
        ([["ghost", 0, 1, 1, False]], "no network 'ghost'"),
    ],
)
def test_visits_beyond_the_limits_are_refused(
    serve: Served, tmp_path: Path, target: Target, rows: Any, says: str
) -> None:
    import re

    with serve() as server:
        bench: Any = client(server).bench(target, CONFIG)
        with bench:
            bench.load("dw_r4_c8", save_conv(tmp_path / "a.onnx"))
            path = f"/v1/sessions/{bench._session}/run"
            status, answer = ask(server, "POST", path, {"visits": rows, "turn": 0})
    assert status in (400, 404) and re.search(says, answer["error"]["message"])


def test_only_runtimes_known_by_name_and_this_machine_s_targets_are_started(
    serve: Served, target: Target
) -> None:
    with serve() as server:
        for change in ({"runtime": "sh"}, {"precision": "int3"}):
            body = {**ABOUT, "target": target.to_json() | change}
            status, answer = ask(server, "POST", "/v1/sessions", body)
            assert (status, answer["error"]["type"]) == (500, "DeviceError")
    with pytest.raises(DeviceError, match="cannot time"):
        target_here(target.id)
    with (
        serve(benches=child_bench) as server,
        pytest.raises(DeviceError, match="cannot be measured here"),
    ):
        client(server).bench(target, CONFIG).__enter__()


def test_a_file_that_names_other_files_is_refused(tmp_path: Path) -> None:
    def tensor() -> Any:
        made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="../../../etc/passwd")
        return made

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    plain = helper.make_node("Add", ["x", "w"], ["y"])
    constant = helper.make_node("Constant", [], ["w"], value=tensor())
    inner = helper.make_graph([constant], "g", [], value[1:])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    for nodes, weights in (([plain], [tensor()]), ([constant, plain], []), ([branch], [])):
        model = helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], weights))
        with pytest.raises(ConfigError, match="weights outside of itself"):
            check_onnx(model.SerializeToString())
    for raw in (b"", b"\x80\x04pickle", b"not onnx"):
        with pytest.raises(ConfigError, match="not ONNX"):
            check_onnx(raw)


def test_a_damaged_file_is_asked_for_again(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "s")
    raw = save_conv(tmp_path / "a.onnx").read_bytes()
    name = hashlib.sha256(raw).hexdigest()
    store.put(name, raw)
    store.get(name).write_bytes(raw[:-3])
    with pytest.raises(Exception, match="send it first"):
        store.get(name)
    assert not list((tmp_path / "s").glob("*.onnx"))


# ---------------------------------------------------------------- tokens and addresses
def test_a_token_file_is_made_for_its_owner_only_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "token"
    token = make_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 32 and make_token(path) == read_token(path) == token
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(path)
    path.chmod(0o600)
    for text in ("short", "spaces in a token of some length", "", "ü" * 40):
        path.write_text(text)
        with pytest.raises(ConfigError, match="something else"):
            read_token(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:1", "https://h:1", "http://h", "http://h:0", "http://h:99999", "http://:1",
     "http://u@h:1", "http://h:1/path", "http://h:1?x", "http://[h:1"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(ConfigError, match="a device is http://HOST:PORT"):
        RemoteAgent(url, TOKEN)


def test_leaving_this_machine_unencrypted_gives_a_warning(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    RemoteAgent("http://127.0.0.1:1", TOKEN)
    assert not caplog.records
    RemoteAgent("http://board.local:1", TOKEN)
    with AgentServer(Agent(FileStore(tmp_path)), TOKEN, host="0.0.0.0"):
        pass
    assert ["without encryption" in caplog.text, "listening on 0.0.0.0" in caplog.text] == [
        True
    ] * 2


def test_a_taken_port_is_an_error_that_says_so(serve: Served, tmp_path: Path) -> None:
    with serve() as server, pytest.raises(ConfigError, match="Choose another --host or --port"):
        AgentServer(Agent(FileStore(tmp_path)), TOKEN, port=server.port)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ConfigError("x"), 400, "ConfigError"),
        (TryAgain("x"), 409, "TryAgain"),
        (StorageError("x"), 507, "StorageError"),
        (DeviceError("x"), 500, "DeviceError"),
        (CorruptFile("x"), 500, "DeviceError"),
    ],
)
def test_errors_travel_with_their_kind(error: Any, status: int, kind: str) -> None:
    assert error_answer(error) == (status, {"error": {"type": kind, "message": "x"}})


# ---------------------------------------------------------------- one client at a time
def test_a_second_client_waits_and_then_is_told_to_try_again(
    serve: Served, target: Target, tmp_path: Path
) -> None:
    with serve() as server, client(server).bench(target, CONFIG) as first:
        first.load("dw_r4_c8", save_conv(tmp_path / "a.onnx"))
        with pytest.raises(TryAgain, match="busy with another client"):
            client(server, patience_s=0.3).bench(target, CONFIG).__enter__()
        assert len(first.run([VISIT])) == 1


def test_a_dead_client_s_session_ends_after_the_idle_limit(serve: Served, target: Target) -> None:
    with serve(idle_s=0.2) as server:
        dead: Any = client(server).bench(target, CONFIG)
        dead.__enter__()  # and never heard of again
        begun_s = time.monotonic()
        living: Any = client(server).bench(target, CONFIG)
        with living:
            assert time.monotonic() - begun_s >= 0.1  # it waited for the limit
            assert living._session != dead._session
            path = f"/v1/sessions/{dead._session}/run"
            assert ask(server, "POST", path, {"visits": [], "turn": 0})[0] == 404


def test_a_client_that_was_idle_for_too_long_gets_its_networks_back(
    serve: Served, target: Target, tmp_path: Path, make_bench: Any
) -> None:
    made: list[Any] = []

    def benches(target: Target, config: ProfileConfig) -> AbstractContextManager[Bench]:
        made.append(make_bench())
        made[-1].unload()
        return nullcontext(made[-1])

    with (
        serve(idle_s=0.1, benches=benches) as server,
        client(server).bench(target, CONFIG) as bench,
    ):
        bench.load("dw_r4_c8", save_conv(tmp_path / "a.onnx"))
        time.sleep(0.5)
        assert len(bench.run([VISIT])) == 1
    assert len(made) == 2 and made[1].loaded == ["dw_r4_c8"]


def test_a_client_that_was_cut_off_in_a_request_goes_on_behind_it(
    serve: Served, target: Target, tmp_path: Path, make_bench: Any
) -> None:
    go_on = threading.Event()

    class Long(make_bench):  # type: ignore[misc]
        def run(self, visits: Any, *, turn: int = 0) -> Any:
            assert go_on.wait(20)
            return super().run(visits, turn=turn)

    with serve(Long()) as server:
        agent = client(server)
        bench: Any = agent.bench(target, CONFIG)
        with bench:
            bench.unload()
            bench.load("dw_r4_c8", save_conv(tmp_path / "a.onnx"))
            path = f"/v1/sessions/{bench._session}/run"
            with pytest.raises(Exception, match="timed out"):
                agent.ask(
                    "POST", path, {"visits": [["dw_r4_c8", 0, 1, 1, False]], "turn": 0}, wait_s=0.1
                )
            threading.Timer(0.3, go_on.set).start()
            bench._begin()
            bench.unload()
            bench.load("dw_r4_c8", tmp_path / "a.onnx")
            assert len(bench.run([VISIT])) == 1


# ---------------------------------------------------------------- an agent that lies
class Lying:
    """A Bench that answers what it is told to."""

    def __init__(self, times: Any, load_ms: Any = 0.1) -> None:
        self.times, self.load_ms = times, load_ms

    def load(self, name: str, path: Path) -> float:
        return self.load_ms  # type: ignore[no-any-return]

    def unload(self) -> None: ...

    def run(self, visits: Any, *, turn: int = 0) -> list[Any]:
        return [Listed(self.times)]

    def seconds(self) -> float:
        return 0.0


class Listed(list[Any]):
    def tolist(self) -> list[Any]:
        return list(self)


@pytest.mark.parametrize(
    "times",
    [
        [[-1.0, 1.0]] * 3,
        [[0.0, 1.0]] * 3,
        [[1e9, 1.0]] * 3,
        [[float("nan"), 1.0]] * 3,
        [[None, 1.0]] * 3,
        [["1", 1.0]] * 3,
        [[1.0]] * 3,
        [[1.0, 1.0]] * 2,
        [],
    ],
)
def test_times_that_no_run_takes_are_an_error_and_not_kept(
    serve: Served, target: Target, tmp_path: Path, times: Any
) -> None:
    with serve(Lying(times)) as server, client(server).bench(target, CONFIG) as bench:
        bench.load("dw_r4_c8", save_conv(tmp_path / "a.onnx"))
        with pytest.raises(DeviceError, match="dw_r4_c8"):
            bench.run([VISIT])
    with (
        serve(Lying([], -3.0)) as server,
        client(server).bench(target, CONFIG) as bench,
        pytest.raises(DeviceError, match=r"-3\.0 ms, which no run takes"),
    ):
        bench.load("dw_r4_c8", tmp_path / "a.onnx")


@pytest.mark.parametrize("wrong", [-1.0, 1e12, float("nan")])
def test_an_agent_that_lies_in_the_middle_of_a_profile_leaves_what_was_true(
    serve: Served, target: Target, tmp_path: Path, make_bench: Any, export: Any, wrong: float
) -> None:
    class Later(make_bench):  # type: ignore[misc]
        batches = 0

        def unload(self) -> None:
            self.batches += 1
            super().unload()

        def run(self, visits: Any, *, turn: int = 0) -> Any:
            found = super().run(visits, turn=turn)
            if self.batches == 2:
                found[-1][0, 0] = wrong
            return found

    path = tmp_path / "t.json"
    with serve(Later(jitter=0.0)) as server, pytest.raises(DeviceError, match="which no run takes"):
        agent = client(server, patience_s=1.0)
        profile(BLOCKS, target, path, CONFIG, benches=agent.bench, export=export)
    kept = LatencyTable.load(path)
    assert 0 < len(kept.entries) < len({part for block in BLOCKS for part in block.parts()})
    assert all(0 < entry.ms < 10 for entry in kept.entries.values())


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"error": 3}', b'{"protocol": 1, "version": "0.0"}']
)
def test_something_that_is_no_agent_of_this_version_is_a_device_error(body: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(DeviceError, match="no agent|hybrid-nas"):
            RemoteAgent(f"http://127.0.0.1:{server.server_port}", TOKEN).target("onnxruntime")
        thread.join()


def test_nobody_there_is_a_device_error_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DeviceError, match="no agent answers at .*nas agent"):
        RemoteAgent(f"http://127.0.0.1:{port}", TOKEN).target("onnxruntime")


# ---------------------------------------------------------------- an agent that is killed
AGENT = """
import json, os, signal, sys
from contextlib import nullcontext
from pathlib import Path
sys.path.insert(0, {tests!r})
import conftest
from nas.latency.agent import Agent
from nas.latency.agent_http import AgentServer
from nas.latency.file_store import FileStore
from nas.target import Target

class Bench(conftest.FakeBench):
    def run(self, visits, *, turn=0):
        if {dies} and len(self.rounds) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(visits, turn=turn)

def begin(target, config):
    made = Bench(jitter=0.0)
    made.unload()
    return nullcontext(made)

target = Target.from_json(json.loads({target!r}))
agent = Agent(FileStore(Path({work!r})), parse=lambda words: target, benches=begin)
with AgentServer(agent, {token!r}, port={port}) as server:
    print(server.port, flush=True)
    server.serve_forever(0.05)
"""


def start_agent(target: Target, work: Path, port: int, *, dies: bool) -> "subprocess.Popen[str]":
    code = AGENT.format(
        tests=str(Path(__file__).parent), target=json.dumps(target.to_json()), work=str(work),
        token=TOKEN, port=port, dies=dies,
    )  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_profile_outlives_kill_9_of_its_agent_and_measures_nothing_twice(
    target: Target, tmp_path: Path, export: Any, on: Any, make_bench: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    first = start_agent(target, tmp_path / "work", 0, dies=True)
    assert first.stdout is not None
    port = int(first.stdout.readline())
    second: list[subprocess.Popen[str]] = []

    def restart() -> None:
        assert first.wait(timeout=60) == -signal.SIGKILL
        second.append(start_agent(target, tmp_path / "work", port, dies=False))

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        agent = RemoteAgent(f"http://127.0.0.1:{port}", TOKEN, patience_s=60)
        told: list[str] = []
        table = profile(
            BLOCKS, agent.target("onnxruntime"), tmp_path / "t.json", CONFIG,
            lambda done, total, text: told.append(text), benches=agent.bench, export=export,
        )  # fmt: skip
    finally:
        thread.join()
        for child in second:
            child.kill()
            child.wait()
            child.stdout.close()  # type: ignore[union-attr]
        first.stdout.close()
    assert "trying again" in caplog.text and len(second) == 1
    near = profile(
        BLOCKS, target, tmp_path / "n.json", CONFIG,
        benches=on(make_bench(jitter=0.0)), export=export,
    )  # fmt: skip
    assert set(table.entries) == set(near.entries)
    assert table.estimate(BLOCKS) == pytest.approx(near.estimate(BLOCKS), rel=1e-3)


def test_an_agent_that_stays_away_is_a_device_error_and_what_is_measured_is_kept(
    serve: Served, target: Target, tmp_path: Path, make_bench: Any, export: Any
) -> None:
    path = tmp_path / "t.json"
    begun = 0

    class Leaving(make_bench):  # type: ignore[misc]
        def unload(self) -> None:
            nonlocal begun
            begun += 1
            if begun == 2:
                threading.Thread(target=server.shutdown).start()
                server.socket.close()
            super().unload()

    with serve(Leaving(jitter=0.0)) as server:
        agent = client(server, patience_s=0.5)
        with pytest.raises(DeviceError, match=r"has not answered for 0 s.*is kept"):
            profile(BLOCKS, target, path, CONFIG, benches=agent.bench, export=export)
    kept = LatencyTable.load(path)
    assert 0 < len(kept.entries) < len({part for block in BLOCKS for part in block.parts()})


# ---------------------------------------------------------------- the real thing
@pytest.mark.slow
def test_a_real_network_is_timed_by_a_real_agent(tmp_path: Path, write_conv: Any) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    token_file = tmp_path / "token"
    words = ["agent", "--port", "0", "--token-file", str(token_file), "--work", str(tmp_path / "w")]
    child = subprocess.Popen(
        [sys.executable, "-m", "nas", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        url = child.stdout.readline().split()[2].rstrip(",")
        agent = RemoteAgent(url, read_token(token_file))
        target = agent.target("onnxruntime,fp32,b1,t1")
        assert target.is_here()
        with agent.bench(target, CONFIG) as bench:
            assert bench.load("conv", write_conv(tmp_path / "conv.onnx")) > 0
            (times,) = bench.run([Visit(name="conv", prime=2, loops=5, samples=4)])
            assert times.shape == (4, 3) and (times > 0).all()
    finally:
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=20)
    assert child.returncode == 143, err


def test_a_session_has_as_many_processes_as_the_client_wants_and_the_agent_allows(
    serve: Served, target: Target, make_bench: Any
) -> None:
    asked: list[tuple[int, int]] = []

    def begin(target: Target, config: ProfileConfig) -> AbstractContextManager[Bench]:
        asked.append((config.processes, config.loads))
        return nullcontext(make_bench())

    config = ProfileConfig(processes=8)
    for allowed, expected in ((8, (8, 1)), (3, (3, 3)), (1, (1, 8))):
        with serve(benches=begin, processes=allowed) as server:
            agent = client(server)
            agent.target("onnxruntime")  # the first that a client asks: what the device allows
            with agent.bench(target, config) as bench:
                assert bench.places == expected[0] * expected[1]
        assert asked[-1] == expected


def test_the_turn_of_a_round_reaches_the_device_in_every_piece_of_it(
    serve: Served, target: Target, tmp_path: Path, make_bench: Any
) -> None:
    turns: list[int] = []

    class Noting(make_bench):  # type: ignore[misc]
        def run(self, visits: Any, *, turn: int = 0) -> Any:
            turns.append(turn)
            return super().run(visits, turn=turn)

    long = Visit(name="dw_r4_c8", prime=0, loops=3 * 10**5, samples=1)
    with serve(Noting()) as server, client(server).bench(target, CONFIG) as bench:
        bench.unload()
        bench.load("dw_r4_c8", save_conv(tmp_path / "a.onnx"))
        bench.run([long] * 3, turn=5)
    assert len(turns) > 1 and set(turns) == {5}
