"""Serve a model on a Ray cluster with Ray Serve: two replicas, each with a model of its own.

uv run --with 'ray[serve]' python examples/ray_serve.py artifacts/digits.onnx 8000
curl --data-binary @examples/digits/held_out/7/0031.png localhost:8000
"""

import argparse
import asyncio

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from densenet_deploy import Classifier, DensenetDeployError, RunnerOptions


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1})
class Classify:
    """Answers an image file with what the model says about it."""

    def __init__(self, model: str) -> None:
        self.classify = Classifier.open(model, options=RunnerOptions(threads=1, spin=False))

    async def __call__(self, request: Request) -> JSONResponse:
        try:
            answer = await asyncio.to_thread(self.classify, await request.body())
        except DensenetDeployError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(answer.to_json())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a model on a Ray cluster with Ray Serve.")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("port", metavar="PORT", type=int)
    given = parser.parse_args()
    serve.start(http_options={"port": given.port})
    serve.run(Classify.bind(given.model), blocking=True)
