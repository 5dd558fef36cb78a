// @ts-check
// The Dataset Editor's grid: captions to edit, search and replace, pictures to leave out, undo.
// Talks to /lora_loom/dataset*, which checks everything again.
import { route } from "./api.js";
import { make, say, style } from "./dom.js";
import { language, said, t } from "./words.js";

/** @typedef {{ label: string, editable: boolean, trigger: string }} PictureSet */

/**
 * A picture of a dataset. `set`: the index of its set; `locked`: why its caption cannot be edited.
 * @typedef {object} Picture
 * @property {string} id
 * @property {number} set
 * @property {string} name
 * @property {string} caption
 * @property {boolean} excluded
 * @property {?import("./words.js").Message} locked
 * @property {number} width
 * @property {number} height
 */

const BATCH = 60; // cards added at a time, so ten thousand pictures open at once
const NEAR_END_PX = 300;

const STYLE = `
.loom-editor { gap: 6px; width: 100%; padding: 6px; }
.loom-editor .tools input[type=text] { flex: 1 1 90px; }
.loom-editor .notice { flex: 1 1 100%; }
.loom-editor .grid { flex: 1; overflow-y: auto; display: grid; gap: 8px; align-content: start;
  grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); }
.loom-editor .card { display: flex; flex-direction: column; gap: 3px; border-radius: 6px; padding: 5px;
  background: rgba(127, 127, 127, .12); }
.loom-editor .card.out { opacity: .45; }
.loom-editor .card.changed { outline: 2px solid #e0a030; }
.loom-editor .card img { width: 100%; height: 130px; object-fit: contain; background: rgba(0, 0, 0, .2);
  border-radius: 4px; }
.loom-editor .card .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; opacity: .75; }
.loom-editor .card textarea { resize: vertical; min-height: 48px; width: 100%; box-sizing: border-box; }
.loom-editor .card label { display: flex; gap: 4px; align-items: center; }
`;

/**
 * A text with each `old` replaced, whatever its case is; `replacement` is taken word by word.
 * @param {string} text
 * @param {string} old
 * @param {string} replacement
 */
export function replaced(text, old, replacement) {
  const pattern = new RegExp(old.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
  return text.replace(pattern, () => replacement);
}

export class Editor {
  /** @param {import("./host.js").Host} host */
  constructor(host) {
    this.host = host;
    /** @type {?string} */
    this.session = null;
    /** @type {PictureSet[]} */
    this.sets = [];
    /** @type {Picture[]} */
    this.pictures = [];
    /** @type {Picture[]} */
    this.filtered = [];
    /** @type {Map<string, string>} picture -> new caption */
    this.edited = new Map();
    /** @type {Map<string, boolean>} picture -> left out or not */
    this.flipped = new Map();
    /** @type {Map<string, string>} picture -> caption as it was when it was loaded */
    this.loaded = new Map();
    this.drawn = 0; // cards
    style("loom-editor", STYLE);
    const button = (/** @type {string} */ textContent, /** @type {() => unknown} */ onclick, title = "") =>
      make("button", { textContent, onclick, title });
    this.find = make("input", { type: "text", placeholder: t("editor.find") });
    this.replacement = make("input", { type: "text", placeholder: t("editor.replace_by") });
    this.save = button(t("editor.save"), () => this.send());
    this.save.disabled = true;
    this.notice = make("div", { className: "notice", textContent: t("editor.run_first") });
    this.grid = make("div", { className: "grid" });
    this.root = make("div", { className: "loom loom-editor", lang: language },
      make("div", { className: "tools" }, this.find, this.replacement,
        button(t("editor.replace_all"), () => this.replace()), this.save,
        button(t("editor.undo"), () => this.undo(), t("editor.undo_hint")),
        button(t("editor.reload"), () => this.load()), this.notice),
      this.grid);
    this.find.addEventListener("input", () => this.draw());
    this.grid.addEventListener("scroll", () => {
      const { scrollTop, clientHeight, scrollHeight } = this.grid;
      if (scrollTop + clientHeight > scrollHeight - NEAR_END_PX) this.more();
    });
    for (const event of ["wheel", "pointerdown", "keydown", "paste"]) {
      this.root.addEventListener(event, (e) => e.stopPropagation()); // not for the canvas
    }
  }

  /**
   * Shows a dataset that the server has opened.
   * @param {string} session
   * @param {string} [maxHeight] where the page would let the editor grow with its content
   */
  async open(session, maxHeight = "") {
    this.session = session;
    this.root.style.maxHeight = maxHeight;
    await this.load();
  }

  async load() {
    if (!this.session) return;
    try {
      this.take(await this.host.fetchJson(route("dataset", { session: this.session })));
    } catch (error) {
      say(this.notice, /** @type {Error} */ (error).message, true);
    }
  }

  take(/** @type {{ sets: PictureSet[], pictures: Picture[] }} */ { sets, pictures }) {
    this.sets = sets;
    this.pictures = pictures;
    this.keepWaiting(new Map(pictures.map((picture) => [picture.id, picture])));
    this.loaded = new Map(pictures.map((picture) => [picture.id, picture.caption]));
    this.draw();
    this.count();
  }

  /** What waits to be saved stays, unless it was saved or its caption changed elsewhere. */
  keepWaiting(/** @type {Map<string, Picture>} */ now) {
    for (const [id, before] of this.loaded) {
      if (now.get(id)?.caption !== before || this.edited.get(id) === before) this.edited.delete(id);
    }
    for (const [id, caption] of this.edited) {
      const picture = now.get(id);
      if (!picture || picture.caption === caption) this.edited.delete(id);
    }
    for (const [id, excluded] of this.flipped) {
      const picture = now.get(id);
      if (!picture || picture.excluded === excluded) this.flipped.delete(id);
    }
  }

  count() {
    const out = this.pictures.filter((picture) => this.excluded(picture)).length;
    const locked = this.sets.filter((set) => !set.editable).map((set) => set.label);
    const waiting = this.edited.size + this.flipped.size;
    this.save.disabled = !waiting;
    const parts = [t("editor.counts", { pictures: this.pictures.length, out })];
    if (waiting) parts.push(t("editor.waiting", { count: waiting }));
    if (locked.length) parts.push(t("editor.locked_sets", { sets: locked.join(", ") }));
    say(this.notice, parts.join(" · "));
  }

  caption(/** @type {Picture} */ picture) {
    return this.edited.get(picture.id) ?? picture.caption;
  }

  excluded(/** @type {Picture} */ picture) {
    return this.flipped.get(picture.id) ?? picture.excluded;
  }

  editable(/** @type {Picture} */ picture) {
    return this.sets[picture.set].editable;
  }

  /**
   * @param {Picture} picture
   * @param {string} caption
   */
  edit(picture, caption) {
    if (caption === picture.caption) this.edited.delete(picture.id);
    else this.edited.set(picture.id, caption);
  }

  /**
   * @param {Picture} picture
   * @param {boolean} excluded
   */
  exclude(picture, excluded) {
    if (excluded === picture.excluded) this.flipped.delete(picture.id);
    else this.flipped.set(picture.id, excluded);
  }

  draw() {
    const wanted = this.find.value.toLowerCase();
    this.filtered = this.pictures.filter((picture) => this.caption(picture).toLowerCase().includes(wanted));
    this.drawn = 0;
    this.grid.replaceChildren();
    this.more();
  }

  more() {
    const next = this.filtered.slice(this.drawn, this.drawn + BATCH);
    this.drawn += next.length;
    this.grid.append(...next.map((picture) => this.card(picture)));
  }

  card(/** @type {Picture} */ picture) {
    const editable = this.editable(picture), { id, name, locked } = picture;
    const text = make("textarea", {
      value: this.caption(picture), readOnly: !editable || Boolean(locked), title: said(locked), spellcheck: false,
    });
    const tick = make("input", { type: "checkbox", checked: !this.excluded(picture), disabled: !editable });
    const src = this.host.imageUrl(route("dataset/thumb", { session: String(this.session), id }));
    const card = make("div", { className: "card" },
      make("img", { loading: "lazy", draggable: false, alt: name, src }),
      make("div", { className: "name", textContent: `${name} · ${picture.width} × ${picture.height}`, title: name }),
      text, make("label", {}, tick, t("editor.train_on_it")));
    const mark = () => {
      card.classList.toggle("out", this.excluded(picture));
      card.classList.toggle("changed", this.edited.has(id) || this.flipped.has(id));
    };
    text.addEventListener("input", () => {
      this.edit(picture, text.value);
      mark();
      this.count();
    });
    tick.addEventListener("change", () => {
      this.exclude(picture, !tick.checked);
      mark();
      this.count();
    });
    mark();
    return card;
  }

  replace() {
    const old = this.find.value;
    if (!old) return say(this.notice, t("editor.find_first"), true);
    let changed = 0;
    for (const picture of this.pictures) {
      if (picture.locked || !this.editable(picture)) continue;
      const before = this.caption(picture), after = replaced(before, old, this.replacement.value);
      if (after === before) continue;
      changed += 1;
      this.edit(picture, after);
    }
    this.find.value = "";
    this.draw();
    this.count();
    if (changed) this.notice.textContent += ` · ${t("editor.replaced", { count: changed })}`;
  }

  async send() {
    /** @type {Record<string, [string, string]>} as it was seen, as it shall be */
    const captions = {};
    for (const [id, caption] of this.edited) captions[id] = [this.loaded.get(id) ?? "", caption];
    const body = { captions, excluded: Object.fromEntries(this.flipped) };
    await this.change("dataset/edit", body, (count) => t("editor.saved", { count }));
  }

  undo() {
    const sentence = (/** @type {number} */ count) =>
      t(count ? "editor.taken_back" : "editor.nothing_to_undo", { count });
    return this.change("dataset/undo", {}, sentence);
  }

  /**
   * @param {string} name of the route
   * @param {object} body
   * @param {(changed: number) => string} sentence
   */
  async change(name, body, sentence) {
    try {
      const { changed } = await this.host.postJson(route(name), { session: this.session, ...body });
      await this.load();
      this.notice.textContent = sentence(changed);
    } catch (error) {
      say(this.notice, /** @type {Error} */ (error).message, true);
    }
  }
}
