"""A step that asks the wheel beside it."""

import time
import urllib.request

from nemotron_style.runtime.errors import Interrupted


def run(config, ctx):
    url = ctx.service("power") or config.power.url
    ctx.say(f"power at {url}")
    while config.hold and ctx.attempt == 1:
        time.sleep(0.005)
        if ctx.stopping:
            urllib.request.urlopen(url).read()  # still there for what has to be finished
            raise Interrupted("stopped while holding")
    if config.fail:
        raise RuntimeError("the press jammed")
    (ctx.output("oil").path / "sack.txt").write_bytes(urllib.request.urlopen(url).read())
