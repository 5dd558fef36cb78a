"""A host that is killed in the middle of a run, started again, goes on with it as if nothing had happened."""

from live_webui import Server
from safetensors import safe_open

ROUTE = "/lora-loom/v1"
STEPS, SAVED_EVERY, KILLED_AFTER = 24, 4, 10
JOB = {
    "data.trigger": "sks", "data.resolution": 64, "data.bucket_step_px": 16, "batch_size": 1, "adapter.rank": 4, "text_encoder.train": True,
    "steps": STEPS, "samples.every": 0, "save.every": SAVED_EVERY,
}  # fmt: skip


def started(server, pictures, name):
    settings = {**JOB, "name": name, "data.folder": pictures}
    server.post(f"{ROUTE}/start", {"settings": settings, "preset": "quick test"})


def tensors(server, name):
    """{name: bytes} of the LoRA in the host's folder."""
    with safe_open(server.data / "models" / "Lora" / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key).contiguous().numpy().tobytes() for key in file.keys()}  # noqa: SIM118


def test_a_run_whose_host_was_killed_goes_on_bit_for_bit(kind, tmp_path):
    server = Server(kind, tmp_path / "data")
    try:
        server.start()
        pictures = server.inside("pictures")
        started(server, pictures, "whole")
        assert server.wait_for("finished", "failed")["status"] == "finished"
        started(server, pictures, "killed")
        panel = server.wait_until_step(KILLED_AFTER)
        server.kill()
        assert (panel["run"], panel["status"]) == ("killed", "training")
        assert not (server.data / "models" / "Lora" / "killed.safetensors").exists()

        server.start()
        (left,) = (run for run in server.get(f"{ROUTE}/runs")["runs"] if run["id"] == "killed")
        assert SAVED_EVERY <= left["step"] < STEPS
        server.post(f"{ROUTE}/go_on", {"node": "page", "run": "killed"})
        panel = server.wait_for("finished", "failed")
        assert (panel["status"], panel["step"]) == ("finished", STEPS), panel["error"]
        assert "killed" in [lora["name"] for lora in server.get("/sdapi/v1/loras")]
        assert tensors(server, "killed") == tensors(server, "whole")
    finally:
        server.stop()
