// @ts-check
// One picture of a dataset on the whole page, with its caption, from one to the next by the keys.
import { make, style } from "./dom.js";
import { inside } from "./viewer.js";
import { language, t } from "./words.js";

const STYLE = `
.loom-look { position: fixed; inset: 0; z-index: 10000; height: auto; color: #eee; font-size: 14px; outline: none;
  background: rgba(14, 15, 18, .97); --loom-ink: #eee; --loom-field: #1d1f24; --loom-line: #4a4f59; }
.loom-look .top { display: flex; gap: 10px; align-items: center; padding: 12px 18px; }
.loom-look .top .name { flex: 1; font-size: 16px; font-weight: 600; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.loom-look .body { flex: 1; min-height: 0; display: flex; gap: 16px; padding: 0 18px; }
.loom-look .body img { flex: 1; min-width: 0; min-height: 0; object-fit: contain; border-radius: 8px;
  background: #08090b; }
.loom-look .side { width: 340px; display: flex; flex-direction: column; gap: 10px; overflow-y: auto; }
.loom-look .side textarea { min-height: 180px; flex: 0 1 320px; font-size: 15px; line-height: 1.5; padding: 8px 10px; }
.loom-look .side label { display: flex; gap: 6px; align-items: center; }
.loom-look .hint { padding: 10px 18px 12px; color: #a9b0bb; font-size: 12px; }
@media (max-width: 720px) { .loom-look .body { flex-direction: column; } .loom-look .side { width: auto; } }
`;

/**
 * What is shown of a picture and what is done with it.
 * @typedef {object} Shown
 * @property {string} name
 * @property {string} src
 * @property {string} caption
 * @property {boolean} readOnly
 * @property {string} locked why the caption cannot be edited
 * @property {boolean} editable
 * @property {boolean} excluded
 * @property {HTMLElement} notes
 * @property {(caption: string) => void} edit
 * @property {(excluded: boolean) => void} exclude
 */

export class PictureView {
  /**
   * @param {number} count
   * @param {(n: number) => Shown} shown
   * @param {(n: number) => void} closed called with the picture that was shown last
   */
  constructor(count, shown, closed) {
    this.count = count;
    this.shown = shown;
    this.closed = closed;
    this.at = 0;
    style("loom-look", STYLE);
    this.name = make("div", { className: "name" });
    this.image = make("img", { draggable: false });
    this.side = make("div", { className: "side" });
    /** @type {(textContent: string, title: string, onclick: () => void) => HTMLButtonElement} */
    const button = (textContent, title, onclick) => make("button", { textContent, title, onclick });
    this.root = make("div", { className: "loom loom-look", lang: language, tabIndex: -1 },
      make("div", { className: "top" }, this.name, button("‹", t("editor.previous"), () => this.go(-1)),
        button("›", t("editor.next"), () => this.go(1)), button("✕", t("viewer.close"), () => this.close())),
      make("div", { className: "body" }, this.image, this.side),
      make("div", { className: "hint", textContent: t("editor.view_hint") }));
    this.root.setAttribute("role", "dialog");
    this.root.setAttribute("aria-modal", "true");
    this.root.setAttribute("aria-label", t("editor.view"));
    this.root.addEventListener("keydown", (event) => this.key(event));
    for (const event of ["wheel", "pointerdown", "paste", "keyup"]) {
      this.root.addEventListener(event, (e) => e.stopPropagation()); // not for the page below
    }
  }

  open(/** @type {number} */ at) {
    document.body.append(this.root);
    this.show(at);
    this.root.focus();
  }

  close() {
    this.root.remove();
    this.closed(this.at);
  }

  go(/** @type {number} */ by) {
    const writing = this.root.contains(document.activeElement) && document.activeElement?.tagName === "TEXTAREA";
    this.show(inside(this.at + by, this.count));
    if (writing) this.text?.focus();
    else this.root.focus();
  }

  show(/** @type {number} */ at) {
    this.at = at;
    const picture = this.shown(at);
    this.name.textContent = `${at + 1} / ${this.count} · ${picture.name}`;
    this.image.src = picture.src;
    this.image.alt = picture.name;
    this.text = make("textarea", {
      value: picture.caption, readOnly: picture.readOnly, title: picture.locked, spellcheck: false,
    });
    this.text.addEventListener("input", () => picture.edit(this.text?.value ?? ""));
    const tick = make("input", { type: "checkbox", checked: !picture.excluded, disabled: !picture.editable });
    tick.addEventListener("change", () => picture.exclude(!tick.checked));
    this.side.replaceChildren(this.text, make("label", {}, tick, t("editor.train_on_it")), picture.notes);
  }

  /** Arrows go on, in the caption together with Alt; Esc closes. */
  key(/** @type {KeyboardEvent} */ event) {
    event.stopPropagation();
    const writing = event.target instanceof HTMLTextAreaElement;
    /** @type {Record<string, () => void>} */
    const keys = {
      Escape: () => this.close(), PageUp: () => this.go(-1), PageDown: () => this.go(1),
      ...(writing && !event.altKey ? {} : { ArrowLeft: () => this.go(-1), ArrowRight: () => this.go(1) }),
      ...(writing ? {} : { Enter: () => this.text?.focus() }),
    };
    const work = keys[event.key];
    if (!work || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    work();
  }
}
