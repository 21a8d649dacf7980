"""A service that turns, and tells its speed and its grain."""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def run(config, ctx):
    if config.break_at == "start":
        raise RuntimeError("the axle broke")
    begun = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            ready = time.monotonic() - begun >= config.load
            self.send_response(200 if ready else 503)
            self.end_headers()
            grain = (Path(config.grain) / "sack.txt").read_text()
            self.wfile.write(f"{config.speed} {grain}".encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = {"url": f"http://127.0.0.1:{server.server_port}", "attempt": ctx.attempt}
    (ctx.run_dir / "endpoint.json").write_text(json.dumps(told))
    ctx.say("turning")
    if config.break_at == "loading":
        os.kill(os.getpid(), 9)
    while not ctx.stopping:
        time.sleep(0.005)
    server.shutdown()
    ctx.say("stopped")
