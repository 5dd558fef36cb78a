"""What was measured, for convert: python tests/convert/programs/make_table.py writes convert/loaders.json and the tables of convert/README.md from results/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONVERT = HERE.parents[2] / "convert"
README, DATA = CONVERT / "README.md", CONVERT / "loaders.json"
PROGRAMS = (
    "ComfyUI",
    "A1111",
    "Forge",
    "reForge",
    "SD.Next",
    "sd-scripts",
    "musubi-tuner",
    "OneTrainer",
    "ai-toolkit",
    "LyCORIS",
    "diffusers",
    "PEFT",
)
FORMS = ("kohya", "comfyui", "diffusers")  # of which Inspect is told
ROWS = ("kohya", "comfyui", "diffusers", "universal", "peft")
NO_MODEL = "no model"
KINDS = (
    "lora",
    "dora",
    "dora_outputs",
    "loha",
    "lokr",
    "lokr_full",
    "oft",
    "boft",
    "glora",
    "ia3",
    "norm",
    "bias",
    "full",
)

Result = dict[str, Any]


def results() -> dict[str, Result]:
    """Program -> what was measured of it."""
    read = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((HERE / "results").glob("*.json"))]
    return {result["program"]: result for result in read}


# --- what Inspect asks --------------------------------------------------------------------------------------------------------------------


def kinds_of(entry: Result, form: str) -> dict[str, Any]:
    """Kind -> exact, nothing, wrong or raises; by sort of layer where they differ."""
    out: dict[str, Any] = {}
    for kind, sorts in entry.get("kinds", {}).get(form, {}).items():
        words = {sort: word(verdict) for sort, verdict in sorts.items()}
        out[kind] = words if len({*words.values()}) > 1 else next(iter(words.values()))
    return out


def word(verdict: str) -> str:
    if verdict in ("exact", "nothing"):
        return verdict
    return "raises" if verdict.startswith("raises") else "wrong"


def cell(entry: Result, form: str, one_rank: bool) -> Result:
    """What `convert.loaders` knows of one program, family and form."""
    seen = entry["forms"][form]
    read, of = total(seen)
    out: Result = {"layers": [read, of], "unread": [name.removeprefix("! ") for name in seen["unread"]]}
    if "rest" in seen and seen["rest"][0] == seen["rest"][1]:
        out["unread"] = seen["alone"]
        if "raised" in seen:
            out["fails_on"] = seen["alone"]
    if together := seen.get("together"):
        out["together"] = sorted(together)
        out["fails_alone"] = any(told.startswith("raises") for told in together.values())
    if seen.get("not_alone"):
        out["not_alone"] = seen["not_alone"]
    if one_rank:
        out["one_rank"] = True
    elif "mixed" in seen and seen["mixed"][0] < seen["mixed"][1]:
        out["one_alpha"] = True
    if (most := entry.get("foreign_keys", {}).get(form)) is not None:
        out["foreign_keys"] = most
    if kinds := kinds_of(entry, form):
        out["kinds"] = kinds
    return out


def total(seen: Result) -> tuple[int, int]:
    return sum(n for n, _ in seen["layers"].values()), sum(of for _, of in seen["layers"].values())


def data() -> dict[str, Result]:
    """The table of `convert.loaders`."""
    out: dict[str, Result] = {}
    for program, result in results().items():
        families: Result = {}
        cells = [seen for entry in result["families"].values() for seen in entry["forms"].values() if seen]
        one_rank = any("mixed" in seen and seen["mixed"][0] == 0 for seen in cells)
        for family, entry in result["families"].items():
            families[family] = {form: cell(entry, form, one_rank) for form in FORMS if entry["forms"].get(form)}
        out[program] = {
            "version": result["version"],
            "date": result["date"],
            "absent": result.get("absent", {}).get("families", []),
            "families": families,
        }
    return out


# --- what the README shows ----------------------------------------------------------------------------------------------------------------


def shown(seen: Result | None) -> str:
    """A cell of the first table."""
    if not seen:
        return ""
    read, of = total(seen)
    if read == of:
        return f"**{of}**"
    if "rest" in seen and seen["rest"][0] == seen["rest"][1]:
        return f"0/{of}, {seen['rest'][0]} alone"
    return f"{read}/{of}"


def layers_table(measured: dict[str, Result]) -> list[list[str]]:
    from lora_loom.convert.families import FAMILIES

    programs = [program for program in PROGRAMS if program in measured]
    rows = [["Model", "Form", *programs]]
    for name, family in FAMILIES.items():
        if not any(name in measured[program]["families"] for program in programs):
            continue
        for form in ROWS:
            cells = [cell_text(measured[program], name, form) for program in programs]
            if not any(text and text != NO_MODEL for text in cells):
                continue
            rows.append(
                [family.title if form == ROWS[0] else "", form + (" *" if form == starred(family) else ""), *cells]
            )
    return rows


def starred(family: Any) -> str:
    """The row of what *universal* writes: one of its own where that is no program's form as it is."""
    return "universal" if family.universal in ("diffusers", "shared") else family.universal


def cell_text(result: Result, family: str, form: str) -> str:
    """A cell of the first table: figures, or that the program has no such model; "" where it was not run."""
    if family in result.get("absent", {}).get("families", ()):
        return NO_MODEL
    return shown(result["families"].get(family, {}).get("forms", {}).get(form))


def kinds_table(measured: dict[str, Result]) -> list[list[str]]:
    """Kind x program: what most families and layers say, with the others beside it."""
    programs = [program for program in PROGRAMS if program in measured]
    rows = [["Kind", *programs]]
    for kind in KINDS[1:]:
        row = [TITLES[kind]]
        for program in programs:
            said = [
                word(verdict)
                for entry in measured[program]["families"].values()
                for form in list(entry.get("kinds", {}))
                for verdict in entry["kinds"][form].get(kind, {}).values()
            ]
            row.append(", ".join(sorted(set(said), key=lambda w: (-said.count(w), w))))
        rows.append(row)
    return rows


def embeddings_table(measured: dict[str, Result]) -> list[list[str]]:
    """Model and form x program."""
    programs = [program for program in PROGRAMS if measured.get(program, {}).get("embeddings")]
    rows = [["Embedding", "Form", *programs]]
    families = {family: forms for program in programs for family, forms in measured[program]["embeddings"].items()}
    for family, forms in families.items():
        for form in forms:
            cells = [measured[program]["embeddings"].get(family, {}).get(form, "") for program in programs]
            rows.append([family if form == "webui" else "", form, *cells])
    return rows


TITLES = {
    "dora": "DoRA over inputs", "dora_outputs": "DoRA over outputs", "loha": "LoHa", "lokr": "LoKr", "lokr_full": "LoKr of two full matrices", "oft": "OFT",
    "boft": "BOFT", "glora": "GLoRA", "ia3": "(IA)³", "norm": "norms", "bias": "biases", "full": "full differences",
}  # fmt: skip


def rules(measured: dict[str, Result]) -> list[str]:
    """One line for each thing a program asks of a whole file."""
    out = []
    for program, result in measured.items():
        entries = result["families"].values()
        cells = [seen for entry in entries for seen in entry["forms"].values() if seen]
        limits = {n for entry in entries for n in entry.get("foreign_keys", {}).values() if n is not None}
        if limits:
            above = f"above {max(limits)} keys" if max(limits) else "with any key"
            out.append(f"- **{program}** refuses the whole file {above} it does not know.")
        together = {part: told for seen in cells for part, told in seen.get("together", {}).items()}
        if together:
            stops = any(told.startswith("raises") for told in together.values())
            does = "reads nothing of a file in which" if stops else "does not read attention of which"
            out.append(f"- **{program}** {does} q, k, v or out of a layer is missing ({', '.join(sorted(together))}).")
        if any(
            "mixed" in c and c["mixed"][0] == 0 for e in result["families"].values() for c in e["forms"].values() if c
        ):
            out.append(f"- **{program}** takes one rank for the whole file, which its user sets.")
        own = [counts for e in result["families"].values() for counts in e.get("written", {}).values()]
        if own:
            good, of = sum(n for n, _ in own), sum(n for _, n in own)
            formats = sorted({name for e in result["families"].values() for name in e.get("written", {})} - {"its own"})
            named = f" ({', '.join(formats)})" if formats else ""
            out.append(
                f"- Of the layers in files that **{program}** wrote itself{named}, {good} of {of} mean here what they mean to it."
            )
        for what, why in result.get("not_run", {}).items():
            out.append(f"- **{program}** was not run with {what}: {why}.")
        training = {
            family: f"{c['training'][0]} of {c['training'][1]}"
            for family, e in result["families"].items()
            for c in e["forms"].values()
            if c and "training" in c and c["training"][0] < c["training"][1] and total(c)[0]
        }
        if training:
            out.append(
                f"- **{program}** continues training on fewer layers than it draws with: {', '.join(f'{k} {v}' for k, v in training.items())}."
            )
    return out


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body])


def versions(measured: dict[str, Result]) -> str:
    return "; ".join(
        f"{p} {measured[p]['version'].split()[0]} ({measured[p]['date']})" for p in PROGRAMS if p in measured
    )


def section(name: str, text: str, inside: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{inside}\n{end}", text, flags=re.DOTALL)


def readme() -> str:
    """convert/README.md with its tables made anew."""
    measured = results()
    text = README.read_text(encoding="utf-8")
    text = section("versions", text, versions(measured))
    text = section("table", text, table(layers_table(measured)))
    text = section("kinds", text, table(kinds_table(measured)))
    text = section("embeddings", text, table(embeddings_table(measured)))
    return section("rules", text, "\n".join(rules(measured)))


def main() -> None:
    DATA.write_text(json.dumps(data(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(HERE))
    import run  # noqa: F401  makes this checkout importable

    main()
