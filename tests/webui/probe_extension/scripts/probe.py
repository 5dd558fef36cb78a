"""A neighbour for tests: runs a function of a file inside the host's process."""

import importlib.util
import json
import traceback

from fastapi import Body
from modules import script_callbacks


def _started(demo, app):
    def run(job: dict = Body(...)):  # noqa: B008 - FastAPI's way
        try:
            spec = importlib.util.spec_from_file_location("loom_probe_job", job["file"])
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            result = getattr(module, job["function"])(**job.get("arguments", {}))
            return json.loads(json.dumps({"result": result}, default=str))
        except BaseException:  # noqa: BLE001 - the test shows it
            return {"error": traceback.format_exc()}

    app.add_api_route("/loom-probe/run", run, methods=["POST"])
    app.add_api_route("/loom-probe/alive", lambda: {"alive": True}, methods=["GET"])


script_callbacks.on_app_started(_started)
