"""The seeds' experiments in miniature: every bundled sweep on the toy, what its claims come to, and the gallery of what the variants drew.

    python benchmarks/claims.py [--seeds 3] [--sweeps toy_methods …] [--out runs/claims]    hours on a CPU; goes on where it was interrupted
    python benchmarks/claims.py --collect [--out runs/claims]                               only takes in what was trained so far
    python benchmarks/claims.py --judged DIR                                                takes in the model's own figures (toy.build --stages judge)
    python benchmarks/claims.py --pages                                                     only writes docs/gallery anew

Each variant is trained with several seeds and judged by the ruler of its set: the share of 20 pictures that show it with the trigger in the prompt, and of 8
without it. A claim is of two variants: the difference is taken seed by seed, and it holds (or does not) where its 95 % interval lies on one side of zero.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import engines

GALLERY = engines.ROOT / "docs" / "gallery"
FILE, MODEL_FILE = engines.RESULTS / "claims.json", engines.RESULTS / "toy.json"
JUDGED_SHEETS = {  # of the model itself
    "vae": "Emoji it never saw, through its VAE and back: each as it is and beside it what comes out",
    "retrieval": "Captions of the kind it was trained on: what they ask for, and beside it what it draws",
    "composition": "Combinations of words it never saw together: what they ask for, and beside it what it draws",
}
SHOWN, LEAKED, MINUTES = "shown with the trigger", "shown without it", "minutes"
DIGEST = "digest"  # of the settings, beside the measures
LEAST_SEEDS = 3
ONE_PICTURE = 1 / 20  # of those that are judged: no difference is surely less than that
SHEET_PX = 1400  # width of a sheet of the model, at most
CELL_PX = 192  # side of a picture on a sheet of variants


@dataclasses.dataclass(frozen=True)
class Claim:
    """`better` does better than `than` in a sweep; where a share leaks (`measure`), lower is better."""

    sentence: str
    better: str
    than: str
    measure: str = SHOWN


@dataclasses.dataclass(frozen=True)
class Sweep:
    """`title` of its part of the gallery, and what is claimed of its variants (LoRA training scripts of the world, unite!, 2024, unless it says otherwise)."""

    title: str
    claims: tuple[Claim, ...] = ()


SWEEPS = {
    "toy_methods": Sweep("What is trained: a LoRA, its text encoder, a word of its own, or both", (
        Claim("pivotal tuning does better than training the text encoder", "pivotal", "lora_and_text_encoder"),
        Claim("a word and a LoRA together do better than the LoRA alone", "pivotal", "lora"),
        Claim("a word and a LoRA together do better than the word alone", "pivotal", "embedding"),
    )),
    "toy_kinds": Sweep("LoRA, DoRA, LoHa, LoKr, OFT at one rank and one rate", (
        Claim("DoRA does better than LoRA (Liu et al., 2024)", "dora", "lora"),
    )),
    "toy_ranks": Sweep("Ranks 4, 16, 32, 64", (
        Claim("rank 32 does better than rank 64", "rank_32", "rank_64"),
        Claim("rank 32 does better than rank 4", "rank_32", "rank_4"),
    )),
    "toy_optimizers": Sweep("AdamW with a rate that was looked for, and Prodigy, which finds its own", (
        Claim("Prodigy at rate 1 does better than AdamW", "prodigy", "adamw"),
    )),
    "toy_weighting": Sweep("Min-SNR weighting", (
        Claim("gamma 5 does better than none (little is expected of a small set)", "min_snr_5", "none"),
    )),
    "toy_class": Sweep("Class pictures: none, drawn by the model, real ones", (
        Claim("generated class pictures lower the likeness", "none", "generated"),
        Claim("real class pictures keep the class: less of the subject without its word", "real", "none", LEAKED),
    )),
    "toy_captions": Sweep("A caption for each picture, or one for all", (
        Claim("captions of their own do better than one for all", "each_its_own", "one_for_all"),
    )),
    "toy_lengths": Sweep("75, 100, 120 steps a picture", (
        Claim("120 steps a picture do better than 75", "120_a_picture", "75_a_picture"),
    )),
    "toy_style": Sweep("The eight runs of the web style", (
        Claim("v4 is the better compromise than v1", "v4", "v1"),
        Claim("v5 is the better compromise than v1", "v5", "v1"),
        Claim("v6 is the better compromise than v1", "v6", "v1"),
    )),
}  # fmt: skip

# ---- what was trained ------------------------------------------------------------------------------------------------


def train(names: Sequence[str], seeds: int, out: Path) -> None:
    """One seed of all sweeps, then two of all, … so that a stop leaves some of everything. What the committed results hold is not trained again."""
    restore(out)
    for count in range(1, seeds + 1):
        for name in names:
            command = [sys.executable, "-m", "lora_loom", "sweep", name, "--seeds", str(count), "--out", str(out)]
            subprocess.run([*command, "--threads", "1", "--pictures", "none"], check=True)


def settings_of(name: str) -> dict[str, Any]:
    from lora_loom.lora_core.compat import parse_toml
    from lora_loom.lora_core.recipes import HERE

    return parse_toml((HERE / "sweeps" / f"{name}.toml").read_text(encoding="utf-8"))


def restore(out: Path) -> None:
    """Puts the committed results where the sweeps look for what was trained before."""
    from lora_loom.lora_core.disk import files
    from lora_loom.lora_core.training.comparing import FOLDER_END, ROWS, Results

    for name, variants in json.loads(FILE.read_text())["sweeps"].items() if FILE.is_file() else ():
        ruler = settings_of(name)["score"]
        results = Results(out / f"{name}{FOLDER_END}")
        known = {row.get("digest") for row in results.rows}
        for variant, measures in variants.items():
            for seed, digest in measures[DIGEST].items():
                if digest not in known:
                    values = {measure: of[seed] for measure, of in measures.items() if measure != DIGEST and seed in of}
                    row = {
                        "variant": f"{name}_{variant}",
                        "seed": int(seed),
                        "run": "",
                        "digest": digest,
                        "ruler": ruler,
                    }
                    results.rows.append({**row, "measures": values})
        results.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(results.folder / ROWS, results.rows)


def collected(out: Path) -> dict[str, Any]:
    """Sweep -> variant -> measure -> a value for each seed, as far as trained, here or before; the first seed's pictures go into the gallery."""
    from lora_loom.lora_core.training.comparing import FOLDER_END, rows_in

    sweeps: dict[str, Any] = json.loads(FILE.read_text())["sweeps"] if FILE.is_file() else {}
    for name in SWEEPS:
        results = out / f"{name}{FOLDER_END}"
        named = {f"{name}_{run['name']}": run["name"] for run in settings_of(name)["runs"]}
        for row in rows_in(results):
            measures = sweeps.setdefault(name, {}).setdefault(named[row["variant"]], {})
            for measure, value in row["measures"].items():
                measures.setdefault(measure, {})[str(row["seed"])] = round(value, 4)
            measures.setdefault(DIGEST, {})[str(row["seed"])] = row["digest"]
        if name in sweeps:
            sweeps[name] = {variant: sweeps[name][variant] for variant in named.values() if variant in sweeps[name]}
            _draw(name, results, sweeps[name])
    return {name: sweeps[name] for name in SWEEPS if name in sweeps}


def _draw(name: str, results: Path, variants: dict[str, Any]) -> None:
    """The gallery's sheet of what each variant's first seed drew, where all of them have their pictures; else the one before stays."""
    from lora_loom.lora_core.pictures.plots import grid
    from lora_loom.lora_core.training.comparing import drawn_in, rows_in

    first = {row["variant"]: row for row in reversed(rows_in(results)) if row.get("pictures")}
    if not {f"{name}_{one}" for one in variants} <= first.keys():
        return
    columns = {one: drawn_in(results, first[f"{name}_{one}"]) for one in variants}
    cells = [(one, *cell) for line in zip(*columns.values()) for one, cell in zip(columns, line)]
    labels = [f"{one}: {prompt}" for one, prompt, _ in cells]
    GALLERY.mkdir(parents=True, exist_ok=True)
    sheet = grid([image for _, _, image in cells], labels, columns=len(columns), cell_px=CELL_PX)
    sheet.save(GALLERY / f"{name}.webp", quality=86, method=6)


TRAINED_ON = "one CPU core in some six hours beside other work (November 2026)"


def keep_judged(folder: Path) -> None:
    figures = json.loads((folder / "figures.json").read_text())
    engines.written("toy", "the bundled toy, judged", MODEL_FILE, trained_on=TRAINED_ON, **figures)
    for name in JUDGED_SHEETS:
        _keep_sheet(folder / f"{name}.png", GALLERY / f"{name}.webp")


def _keep_sheet(source: Path, place: Path) -> None:
    from PIL import Image

    if source.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as opened:
            sheet = opened.convert("RGB")
        sheet.thumbnail((SHEET_PX, SHEET_PX))
        sheet.save(place, quality=86, method=6)


# ---- what it comes to ------------------------------------------------------------------------------------------------


def difference(variants: dict[str, Any], claim: Claim) -> list[float] | None:
    """By how much the better variant is better, for each seed that both were trained with; None without one."""
    one, other = (variants.get(name, {}).get(claim.measure, {}) for name in (claim.better, claim.than))
    seeds = [seed for seed in one if seed in other]
    sign = -1 if claim.measure == LEAKED else 1
    return [sign * (one[seed] - other[seed]) for seed in seeds] or None


def verdict(values: Sequence[float] | None) -> tuple[str, str]:
    """(whether a claim holds here, its figure)."""
    from lora_loom.lora_core.training.comparing import interval

    if values is None:
        return "not trained", ""
    mean, half = interval(values)
    if len(values) < LEAST_SEEDS:
        return "too few seeds yet", f"{mean:+.2f}"
    figure = f"{mean:+.2f} ± {half:.2f}"
    if abs(mean) <= max(half or 0.0, ONE_PICTURE + 1e-9):
        return "cannot be told apart", figure
    return ("holds" if mean > 0 else "does not hold"), figure


def share(values: dict[str, float]) -> str:
    from lora_loom.lora_core.training.comparing import interval

    mean, half = interval(list(values.values()))
    return f"{mean:.2f}" if len(values) < LEAST_SEEDS else f"{mean:.2f} ± {half:.2f}"


Rows = list[list[str]]


def claims_of(name: str, variants: dict[str, Any]) -> Rows:
    def cell(one: str, measure: str) -> str:
        return f"{one}: {share(variants[one][measure])}" if measure in variants.get(one, {}) else one

    rows = []
    for claim in SWEEPS[name].claims:
        held, figure = verdict(difference(variants, claim))
        rows.append([claim.sentence, *(cell(one, claim.measure) for one in (claim.better, claim.than)), figure, held])
    return rows


def all_claims(record: dict[str, Any]) -> Rows:
    """Those of every sweep, trained or not."""
    return [row for name in SWEEPS for row in claims_of(name, record["sweeps"].get(name, {}))]


def not_trained(record: dict[str, Any]) -> str:
    """A sentence of the variants that no seed was trained of; empty where there are none."""
    lacking = []
    for name in SWEEPS:
        trained = record["sweeps"].get(name, {})
        variants = [run["name"] for run in settings_of(name)["runs"] if run["name"] not in trained]
        if variants:
            lacking.append(f"{name} ({', '.join(variants)})")
    return f" Not trained yet: {'; '.join(lacking)}." if lacking else ""


def variants_of(variants: dict[str, Any]) -> Rows:
    rows = []
    for variant, measures in variants.items():
        shares = [share(measures[name]) if name in measures else "" for name in (SHOWN, LEAKED)]
        rows.append([variant, str(len(measures[SHOWN])), *shares])
    return rows


CLAIM_HEAD = ["claim", "this", "that", "difference, seed by seed", "here"]
VARIANT_HEAD = ["variant", "seeds", SHOWN, LEAKED]

# ---- the pages -------------------------------------------------------------------------------------------------------

ABOUT = (
    "Small trainings on the bundled toy, which draws emoji: every variant with several seeds, each judged by a ruler of pixels (the share of 20 "
    "pictures that show what was taught with the trigger in the prompt, and of 8 without it). ± is half of a 95 % interval over the seeds. A claim holds "
    "where the difference, taken seed by seed, is surely on its side. What holds on a model of 24 MB need not hold on a large one: this is a way to "
    "see what a setting does, made again with one command."
)
COMMAND = "python benchmarks/claims.py --seeds 3"
MODEL_TITLE = "The toy itself"


def model_told(figures: dict[str, Any]) -> str:
    vae, drawn = figures["vae"], {name: figures[name] for name in ("retrieval", "composition")}
    shares = [
        f"{one['right']:.1%} of {one['captions']} (another caption's picture: {one['right_by_another_caption']:.0%})"
        for one in drawn.values()
    ]
    return (
        f"{figures['bytes'] / 1e6:.1f} MB, float16, 128 px. Its VAE shows {vae['pictures']} emoji that were held out with {vae['psnr_db']:.2f} dB "
        f"(worst {vae['psnr_worst_db']:.2f}; along the border {vae['border_psnr_db']:.2f}; the largest error of one pixel "
        f"in a corner that should be blank is {vae['blank_corner_error']:.0f} of 255). Captions like those it was trained on: the nearest of all "
        f"scenes is the right thing for {shares[0]}; words never seen together: the right thing with the right change for {shares[1]}. "
        f"Trained by `python -m lora_loom.lora_core.toy.build` on {figures['trained_on']}. Judged {figures['date']}."
    )


def made(record: dict[str, Any]) -> str:
    """Where and how long. What several sweeps share was trained once."""
    rows = [measures for variants in record["sweeps"].values() for measures in variants.values()]
    spent = {digest: m[MINUTES][seed] for m in rows for seed, digest in m[DIGEST].items() if seed in m[MINUTES]}
    fewest, most = (of(len(m[DIGEST]) for m in rows) for of in (min, max))
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    seeds = "1 seed" if count == "1" else f"{count} seeds"
    hours = f"{len(spent)} trainings, {sum(spent.values()) / 60:.1f} hours of one thread beside other work"
    where = f"{record['date']}, {record['hardware']}, torch {record['torch']}; {hours}."
    return f"So far {seeds} a variant: the command adds what is missing. {where}{not_trained(record)}"


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "# Gallery: what each setting does, seen and measured",
        "",
        ABOUT,
        "",
        f"Made by `{COMMAND}`. {made(record)}",
    ]
    lines += [
        "",
        "## Claims",
        "",
        *_table(CLAIM_HEAD, all_claims(record)),
    ]
    for name, variants in record["sweeps"].items():
        lines += ["", f"## {SWEEPS[name].title}", "", f"`lora-loom sweep {name} --seeds 3`", ""]
        lines += [*_table(VARIANT_HEAD, variants_of(variants)), "", f"![{SWEEPS[name].title}]({name}.webp)"]
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: Rows) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1, h2 { line-height: 1.2 } h2 { margin-top: 3rem } img { max-width: 100%; border: 1px solid #ddd } code { background: #f2f2f2; padding: .1em .3em }
table { border-collapse: collapse; margin: 1rem 0 } th, td { text-align: left; padding: .3em .8em; border-bottom: 1px solid #ddd } th { font-weight: 600 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #16181d } code { background: #2a2d35 } th, td { border-color: #3a3d45 } }"""


def page(record: dict[str, Any]) -> str:
    claims = all_claims(record)
    parts = [
        f"<h1>What each setting does, seen and measured</h1><p>{html.escape(ABOUT)}</p>",
        f"<p>Made by <code>{COMMAND}</code>. {html.escape(made(record))}</p><h2>Claims</h2>{_grid(CLAIM_HEAD, claims)}",
        f"<h2>{MODEL_TITLE}</h2><p>{_with_code(model_told(record['model']))}</p>",
        *(
            f'<p>{caption}:</p><img src="{name}.webp" alt="{caption}" loading="lazy">'
            for name, caption in JUDGED_SHEETS.items()
        ),
    ]
    for name, variants in record["sweeps"].items():
        title = html.escape(SWEEPS[name].title)
        parts.append(
            f"<h2>{title}</h2><p><code>lora-loom sweep {name} --seeds 3</code></p>{_grid(VARIANT_HEAD, variants_of(variants))}"
        )
        parts.append(f'<img src="{name}.webp" alt="{title}" loading="lazy">')
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>LoRA Loom: gallery</title><style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"


def _with_code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _grid(head: list[str], rows: Rows) -> str:
    def line(cells: list[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def pages(record: dict[str, Any]) -> dict[str, str]:
    """File name -> content, below docs/gallery."""
    return {"README.md": markdown(record), "index.html": page(record)}


def read() -> dict[str, Any]:
    """What the gallery is made of: the committed results, of the trainings and of the model."""
    return {**json.loads(FILE.read_text()), "model": json.loads(MODEL_FILE.read_text())}


def write_pages() -> None:
    GALLERY.mkdir(parents=True, exist_ok=True)
    for name, text in pages(read()).items():
        (GALLERY / name).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--collect", action="store_true", help="train nothing")
    parser.add_argument("--judged", type=Path, help="folder with the figures of the model; train nothing")
    parser.add_argument("--pages", action="store_true", help="train and take in nothing")
    args = parser.parse_args()
    engines.enter_package()
    if args.judged:
        keep_judged(args.judged)
    elif not args.pages:
        if not args.collect:
            train(args.sweeps, args.seeds, args.out)
        engines.written("claims", "variants trained on the bundled toy with several seeds", sweeps=collected(args.out))
    write_pages()


if __name__ == "__main__":
    main()
