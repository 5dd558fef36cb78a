"""Everything that can be timed on this machine, and the tables of README.md made from the results.

python benchmarks             times (about an hour on two cores) and writes the tables
python benchmarks --tables    only writes the tables from the results that are there
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE, MARK = Path(__file__).resolve().parent, "<!-- tables -->"
SCRIPTS = (
    "step_sd15",
    "launch",
    "counts",
    "tricks",
    "seed_job",
    "scaling",
    "encode_dataset",
    "convert_files",
    "reading",
    "answers",
    "step_text_encoder",
    "estimates",
    "step_webui",
    "gpu",
)


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def step(record: dict[str, Any]) -> str:
    head = ["base", "threads", "minimal loop, CPU s", "headless", "in ComfyUI"]
    ours = [
        [f"{r[f'{b}_cpu_s']} ({r[f'{b}_cpu_ratio']} x)" if f"{b}_cpu_s" in r else "-" for b in ("headless", "host")]
        for r in record["speed"]
    ]
    rows = [[r["dtype"], r["threads"], r["minimal_cpu_s"], *columns] for r, columns in zip(record["speed"], ours)]
    times = {(r["backend"], r["recomputed"]): r["time_ratio"] for r in record["recompute"]}
    memory = [
        [
            r["dtype"],
            {"host": "in ComfyUI"}.get(r["backend"], r["backend"]),
            r["recomputed"],
            r["peak_above_gb"],
            times.get((r["backend"], r["recomputed"]), 1.0) if r["dtype"] == "fp32" else "",
        ]
        for r in record["memory"]
    ]
    return (
        table(head, rows)
        + "\n\n"
        + table(["base", "backend", "recomputed", "GB above the loaded base", "time"], memory)
    )


def webuis(record: dict[str, Any]) -> str:
    def beside(values: dict[str, float], way: str = "ours") -> str:
        least = values.get("minimal")
        return f"{values[way]} ({values[way] / least:.2f} x)" if least else f"{values[way]}"

    full, narrow = [], []
    for name, sizes in record["hosts"].items():
        if r := sizes.get("full"):
            times = [r["cpu_s"].get("minimal", "-"), beside(r["cpu_s"]), r["cpu_s"]["checkpointed"]]
            full.append([name, r["torch"], *times, r["loaded_gb"], r["peak_above_gb"], r["checkpointed_above_gb"], r["load"]])  # fmt: skip
        if r := sizes.get("narrow"):
            narrow.append([name, r["torch"], r["shortest_ms"].get("minimal", "-"), beside(r["shortest_ms"]), r["load"]])
    head = ["full size, 256 px, rank 16 attention", "torch", "minimal loop, CPU s", "ours, CPU s", "recomputed, CPU s"]
    head += ["GB of the loaded host", "GB above it", "recomputed, GB above it", "load of the machine"]
    small = ["narrow, 64 px, rank 4: besides arithmetic", "torch", "minimal loop, CPU ms", "ours, CPU ms", "load of the machine"]  # fmt: skip
    return "\n\n".join(table(titles, rows) for titles, rows in ((head, full), (small, narrow)) if rows)


def scaling(record: dict[str, Any]) -> str:
    out = []
    for kind in ("rank", "resolution", "targets", "batch"):
        rows = []
        for r in record[kind]:
            changed = (
                r["changed"].get("rank")
                or r["changed"].get("px")
                or r["changed"].get("batch")
                or r["changed"]["job"]["adapter"]["targets"]
            )
            rows.append(
                [
                    changed,
                    r["adapters"],
                    f"{r['trained_values']:,}",
                    r["cpu_s"],
                    f"{r['time_ratio']} x",
                    r["peak_above_gb"],
                ]
            )
        out.append(table([kind, "adapters", "trained values", "CPU s a step", "time", "GB above the base"], rows))
    rows = [[f"{r['pictures']:,}", r["first_start_s"], r["batch_us"], r["memory_mb"]] for r in record["pictures"]]
    return "\n\n".join(
        [*out, table(["pictures", "s to index and cache them", "microseconds a batch", "MB kept"], rows)]
    )


def seed(record: dict[str, Any]) -> str:
    return table(
        ["px", "base", "pictures an update", "s a step", "15,000 steps", "trained values", "file"],
        [
            [
                record["px"],
                record["precision"],
                record["grad_accum"],
                record["s_per_step"],
                f"{record['projected_hours']} h",
                f"{record['trained_values']:,}",
                f"{record['file_mb']} MB",
            ]
        ],
    )


def gpu(record: dict[str, Any]) -> str:
    names = ("pictures_per_s", "peak_gb", "utilisation", "waits", "kernels")
    rows = [
        [r["case"], r["way"], r.get("ms", r.get("failed")), *(r.get(name, "") for name in names)]
        for r in record["steps"]
    ]
    rate = record["rate"]
    head = ["case", "way", "ms a step", "pictures/s", "peak GB", "utilisation", "waits", "kernels"]
    products = f"bf16 products: {rate.get('bf16_tflops', '?')} TFLOP/s; a kernel is started in {rate.get('start_us', '?')} microseconds."
    return f"{products} All of it took {record['seconds']} s.\n\n" + table(head, rows)


def counts(record: dict[str, Any]) -> str:
    titles = {"least": "least loop", "headless": "headless", "host": "in ComfyUI", "peft": "diffusers + PEFT"}
    parts = {
        "kernels": "kernels a step",
        "update": "of these after the backward pass",
        "waits": "values waited for",
        "calls": "calls of Python",
    }
    rows = []
    for r in record["rows"]:
        ways = [r[way] for way in titles if way in r]
        for part, title in parts.items():
            rows.append([r["model"], title, *(f"{way[part]:,}" if part in way else "-" for way in ways)])
    return table(["model", "what", *titles.values()], rows)


def estimates(record: dict[str, Any]) -> str:
    head = [
        "model",
        "px",
        "steps",
        "said, s",
        "took, s",
        "said, GB",
        "took, GB",
        "time left off by at most",
        "CPU s",
        "s a step: measured, then",
    ]
    rows = [
        [r["model"], r["px"], r["steps"], r["said_s"], f"{r['took_s']} ({r['took_s'] / r['said_s']:.2f} x)", r["said_gb"],
         f"{r['took_gb']} ({r['took_gb'] / r['said_gb']:.2f} x)", f"{r['worst_left']} x ({r['looks']} looks)", r["cpu_s"],
         f"{r['measured_step_s']}, {r['step_s']}"]
        for r in record["rows"]
    ]  # fmt: skip
    return table(head, rows)


def tricks(record: dict[str, Any]) -> str:
    rows = [[r["trick"], r["dtype"], r["plain_s"], r["with_s"], f"{r['gain']} x"] for r in record["tricks"]]
    return table(["trick", "base", "plain, CPU s", "with it", "faster by"], rows)


def reading(record: dict[str, Any]) -> str:
    return table(["what", "s"], [[row["what"], row["s"]] for row in record["rows"]])


def _ratio(row: dict[str, Any], way: str) -> str:
    return (
        f"{row['ms'][way]} ({row['ratio'][way]} x)"
        if way in row["ms"]
        else f"stops: {row['failed'].get(way, 'not measured')}"
    )


def launch(record: dict[str, Any]) -> str:
    titles = {
        "least": "least loop",
        "headless": "headless",
        "host": "in ComfyUI",
        "peft": "diffusers + PEFT",
        "sd-scripts": "layers of sd-scripts",
        "native": "ComfyUI's trainer",
    }
    rows, shares = record["rows"], []
    times = [[r["model"], r["mflop"], *(_ratio(r, way) for way in titles)] for r in rows]
    counts = [[r["model"], *(f"{r['calls'][way]:,}" if way in r["calls"] else "-" for way in titles)] for r in rows]
    for way in ("headless", "host"):
        parts = list(rows[0]["parts"][way])
        shares += [[titles[way], part, *(f"{r['parts'][way][part]:.0%}" for r in rows)] for part in parts]
    return "\n\n".join(
        [
            table(["model", "MFLOP", *(f"{title}, CPU ms" for title in titles.values())], times),
            table(["calls of Python functions a step", *titles.values()], counts),
            table(["way", "part of a step, profiled", *(r["model"] for r in rows)], shares),
        ]
    )


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "step_sd15": ("One step of SD1.5 beside the least a step can be", step),
    "step_webui": ("One step of SD1.5 inside the WebUIs", webuis),
    "launch": ("What a step costs besides its arithmetic", launch),
    "counts": ("What a step asks of a device", counts),
    "tricks": ("What known tricks gain on a CPU", tricks),
    "scaling": ("How cost grows", scaling),
    "seed_job": ("The 15,000-step job of the diffusers guide, on a CPU", seed),
    "reading": ("Reading", reading),
    "answers": ("Answers of a server", reading),
    "estimates": ("What a run is said to take, and what it takes", estimates),
    "gpu": ("On a GPU", gpu),
}


def with_tables(text: str) -> str:
    """README.md's text with the tables below its marker made anew from the JSON files that are there."""
    parts = []
    for name, (title, drawn) in SECTIONS.items():
        file = HERE / "results" / f"{name}.json"
        if not file.exists():
            parts.append(f"## {title}\n\nNot measured yet: `python benchmarks/{name}.py`.")
            continue
        record = json.loads(file.read_text())
        on = ", ".join(str(record[k]) for k in ("date", "hardware", "gpu", "torch") if k in record)
        parts.append(f"## {title}\n\n{record['what']}. {on}.\n\n{drawn(record)}")
    return text[: text.index(MARK)] + MARK + "\n\n" + "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    args = parser.parse_args()
    for name in () if args.tables else SCRIPTS:
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False)
    readme = HERE / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
