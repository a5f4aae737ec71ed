"""What the tests of the server share: a small runner, a server in a thread, and clients without libraries."""

import asyncio
import contextlib
import http.client
import json
import threading
from types import SimpleNamespace

import numpy as np

from densenet_deploy.serving.server import ServeOptions, StopRequest, listen, run_server
from densenet_deploy.serving.service import Service
from tests.function_runner import FunctionRunner

WAIT_S = 20


def rows_runner(function=lambda feeds: {"output": feeds["input"] * 2}, shape=(None, 2)):
    """A runner of a function of feeds, whose output has the shape of its input."""
    return FunctionRunner(lambda batch: function({"input": batch}), input_shape=shape, outputs={"output": shape})


class Gate:
    """A model that waits: the first run begins, and requests that come meanwhile wait in the queue."""

    def __init__(self):
        self.began, self.open = threading.Event(), threading.Event()

    def __call__(self, feeds):
        self.began.set()
        assert self.open.wait(WAIT_S)
        return {"output": feeds["input"] * 2}


@contextlib.contextmanager
def serving(service: Service, **options):
    """Run a server of `service` in a thread; yields where it listens, and what stops it."""
    options = ServeOptions(port=0, **options)
    ready, found, stop = threading.Event(), [], StopRequest()

    def run():
        def tell(address):
            found.append(address)
            ready.set()

        with contextlib.closing(listen(options.host, options.port)) as listening:
            asyncio.run(run_server(service, listening, options, tell, stop))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        service.is_open = True
        host, _, port = found[0].http.removeprefix("http://").rpartition(":")
        yield SimpleNamespace(host=host, port=int(port), grpc=found[0].grpc, stop=stop, thread=thread, service=service)
    finally:
        stop()
        stop()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        service.close()


def call(server, method, path, body=None, headers=None, timeout=WAIT_S):
    """Return status, headers and body of one request."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def infer(server, array, name="m", *, binary=True, **more):
    """Return the status and, of an answer with status 200, the first output."""
    entry = {"name": more.get("input", "input"), "shape": list(array.shape), "datatype": more.get("datatype", "FP32")}
    data = b""
    if binary:
        data = array.tobytes()
        entry["parameters"] = {"binary_data_size": len(data)}
    else:
        entry["data"] = array.tolist()
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": binary}}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    status, headers, body = call(server, "POST", f"/v2/models/{name}/infer", head + data, length)
    if status != 200:
        return status, json.loads(body)
    size = int(headers["Inference-Header-Content-Length"]) if binary else len(body)
    (output,) = json.loads(body[:size])["outputs"]
    assert output["datatype"] == "FP32"
    values = np.frombuffer(body[size:], np.float32) if binary else np.array(output["data"], np.float32)
    return status, values.reshape(output["shape"])
