// @ts-check
// The Dataset Editor's tags: how often each is there, one to filter by, and what is done with one in many captions.
import { make } from "./dom.js";
import { TAG_WORK, tagCounts } from "./tags.js";
import { t } from "./words.js";

/** @typedef {keyof typeof TAG_WORK} TagWork */

const MOST_TAGS = 400; // shown
const BUTTONS = /** @type {TagWork[]} */ (["prepend", "append", "remove", "exchange", "sort"]);

export class TagList {
  /**
   * @param {object} asked
   * @param {() => string[]} asked.captions those whose tags are counted
   * @param {() => void} asked.chosen called when another tag is filtered by
   * @param {(work: TagWork, tag: string, by: string) => void} asked.work does something with a tag in all captions
   */
  constructor({ captions, chosen, work }) {
    this.captions = captions;
    this.chosen = chosen;
    this.tag = ""; // that is filtered by
    this.list = make("div", { className: "list" });
    this.text = make("input", { type: "text", placeholder: t("editor.tag") });
    this.by = make("input", { type: "text", placeholder: t("editor.tag_by") });
    const buttons = BUTTONS.map((name) => make("button", {
      textContent: t(`editor.${name}`), title: t(`editor.${name}_hint`),
      onclick: () => work(name, this.text.value.trim(), this.by.value.trim()),
    }));
    this.root = make("div", { className: "tags", hidden: true }, this.text, this.by,
      make("div", { className: "tools" }, ...buttons), this.list);
    this.button = make("button", {
      textContent: t("editor.tags"), title: t("editor.tags_hint"), onclick: () => this.toggle(),
    });
  }

  toggle() {
    this.root.hidden = !this.root.hidden;
    this.button.setAttribute("aria-pressed", String(!this.root.hidden));
    this.draw();
  }

  choose(/** @type {string} */ tag) {
    this.tag = this.tag === tag ? "" : tag;
    this.text.value = this.tag;
    this.chosen();
  }

  draw() {
    if (this.root.hidden) return;
    this.list.replaceChildren(...tagCounts(this.captions()).slice(0, MOST_TAGS).map(([tag, count]) => {
      const row = make("button", { title: tag, onclick: () => this.choose(tag) },
        make("span", { textContent: tag }), make("small", { textContent: String(count) }));
      row.setAttribute("aria-pressed", String(this.tag === tag));
      return row;
    }));
  }
}
