"""Writes the sections Inputs and Outputs of the help pages from the schemas, so that a page names everything its node has.

Pages are js/docs/<NodeId>.md and, in other languages, js/docs/<NodeId>/<language>.md. `make_texts.py` runs it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from make_locales import LANGUAGES, translations

DOCS = Path(__file__).resolve().parents[2] / "js" / "docs"
PLACES = frozenset(
    {"folder", "file", "file_1", "file_2", "file_3", "file_4", "checkpoint", "base", "tuned", "destination", "run"}
)  # what is there differs by machine


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a page that are the same on all; `headings` in their order."""

    headings: tuple[str, str, str, str]
    input_row: tuple[str, str, str]
    output_row: tuple[str, str]
    marks: tuple[str, str, str]
    choices: str
    bounds: str
    switch: tuple[str, str]
    nothing: str


WORDS = {
    "en": Words(
        ("Example", "Common mistakes", "Inputs", "Outputs"), ("input", "default", "what it does"), ("output", "what it is"), ("optional", "advanced", "older workflows"),
        " Choices: {}.", " From {} to {}.", ("off", "on"), "None.",
    ),
    "zh": Words(
        ("示例", "常见错误", "输入", "输出"), ("输入", "默认值", "作用"), ("输出", "内容"), ("可选", "高级", "旧工作流"), "可选值：{}。", "范围 {} 到 {}。", ("关", "开"), "无。",
    ),
    "ko": Words(
        ("예시", "흔한 실수", "입력", "출력"), ("입력", "기본값", "설명"), ("출력", "내용"), ("선택", "고급", "예전 워크플로"), " 선택지: {}.", " 범위 {}~{}.", ("끔", "켬"), "없음.",
    ),
    "ja": Words(
        ("例", "よくある間違い", "入力", "出力"), ("入力", "初期値", "説明"), ("出力", "内容"), ("任意", "詳細", "古いワークフロー"), "選択肢：{}。", "範囲は{}から{}。", ("オフ", "オン"), "なし。",
    ),
}  # fmt: skip


def cell(text: str) -> str:
    """A text as Markdown inside a table: angle brackets and bars are shown, not read."""
    return re.sub(r"[\w./:]*(?:<\w[\w:]*>|\{[^}]+\})(?:[\w./:]*\w)?", r"`\g<0>`", text, flags=re.ASCII).replace(
        "|", "\\|"
    )


def value(default: Any, words: Words) -> str:
    if default is None or default == "":
        return ""
    if isinstance(default, bool):
        return words.switch[default]
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def number(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def meaning(item: Any, words: Words, word: Callable[[str], str]) -> str:
    """Tooltip, then the choices or the range."""
    text, options = cell(word(item.tooltip)), getattr(item, "options", None)
    low, high = getattr(item, "min", None), getattr(item, "max", None)
    if options and item.id not in PLACES:
        text += words.choices.format(", ".join(f"`{option}`" for option in options))
    if low is not None and high is not None and item.id != "seed":
        text += words.bounds.format(number(low), number(high))
    return text


def called(name: str, word: Callable[[str], str]) -> str:
    return f"**{name}**" + ("" if word(name) == name else f" {word(name)}")


def kind(item: Any, words: Words, word: Callable[[str], str]) -> str:
    old = bool((getattr(item, "extra_dict", None) or {}).get("hidden"))  # it stands on a settings node now
    has = (getattr(item, "optional", False) and not old, getattr(item, "advanced", False) and not old, old)
    marks = [mark for mark, there in zip(words.marks, has, strict=True) if there]
    return called(item.id, word) + (f" ({', '.join(marks)})" if marks else "")


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ("---",) * len(titles), *rows)]


def sections(schema: Any, words: Words, word: Callable[[str], str]) -> str:
    """Both sections as Markdown; `word` translates a text of the schema."""
    rows = [
        (kind(i, words, word), value(getattr(i, "default", None), words), meaning(i, words, word))
        for i in schema.inputs
    ]
    outputs = [(called(o.display_name, word), cell(word(o.tooltip))) for o in schema.outputs]
    inputs = table(words.input_row, rows) if rows else [words.nothing]
    return "\n".join(
        [f"## {words.headings[2]}", "", *inputs, "", f"## {words.headings[3]}", "", *table(words.output_row, outputs)]
    )


def page(text: str, schema: Any, language: str = "en", known: dict[str, str] | None = None) -> str:
    """The page with both sections as they should be, at its end. `known`: English text -> the language's."""
    words = WORDS[language]
    above = text.partition(f"\n## {words.headings[2]}\n")[0].rstrip()
    return f"{above}\n\n{sections(schema, words, lambda t: (known or {}).get(t, t))}\n"


def path_of(node_id: str, language: str) -> Path:
    return DOCS / (f"{node_id}.md" if language == "en" else f"{node_id}/{language}.md")


def pages(schemas: Mapping[str, Any]) -> dict[Path, str]:
    """Every page as it should be."""
    out = {}
    for language in ("en", *LANGUAGES):
        known = {} if language == "en" else translations(language)
        for node_id, schema in schemas.items():
            path = path_of(node_id, language)
            out[path] = page(path.read_text(encoding="utf-8"), schema, language, known)
    return out


def write(schemas: Mapping[str, Any]) -> None:
    for path, text in pages(schemas).items():
        path.write_text(text, encoding="utf-8")
