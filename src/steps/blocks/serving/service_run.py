"""What happens to a service between the begin and the end of its run, in this order.

It takes its address and tells where it is (``endpoint.json`` and a log line), so that whoever
waits for it knows that it is coming; loads its model; answers. When it is asked to stop it takes
nothing new, answers what it has taken, and leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.http.endpoint import Address, write_endpoint
from nemotron_style.steps.blocks.serving.config import ServiceConfig
from nemotron_style.steps.blocks.serving.server import Service

SECONDS_BETWEEN_CHECKS = 0.1


def serve_until_stopped(
    service: Service, config: ServiceConfig, ctx: StepContext, *, load: Callable[[], str]
) -> bool:
    """Serve the input ``model`` until the run is asked to stop, or the model is broken.

    ``load`` loads it, lets the service answer from then on, and says what is served. False when
    something that was taken was not answered within ``drain_seconds``.
    """
    artifact = ctx.input("model")
    address = Address("http", *service.listen(config.host, config.port))
    endpoint = write_endpoint(ctx.run_dir, address, model=artifact.digest, attempt=ctx.attempt)
    ctx.say(f"listening at {address}, loading {artifact.ref}")
    try:
        ctx.say(f"ready at {address}{load()}")
        while not (ctx.stopping or service.is_broken):
            time.sleep(SECONDS_BETWEEN_CHECKS)
    finally:
        endpoint.unlink(missing_ok=True)
        answered = service.drain(config.drain_seconds)
    if not answered:
        ctx.say("some requests were not answered in time and got nothing")
    return answered
