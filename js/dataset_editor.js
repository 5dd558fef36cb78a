// @ts-check
// The Dataset Editor: what of a dataset is shown and changed together (search and replace, tags, filters by what was
// noticed, captions by a model, undo). Talks to /lora_loom/dataset*, which checks everything again.
import { route } from "./api.js";
import { CaptionForm } from "./caption_form.js";
import { make, say, style } from "./dom.js";
import { cardOf } from "./editor_cards.js";
import { Edits } from "./editor_edits.js";
import { STYLE } from "./editor_style.js";
import { TagList } from "./editor_tags.js";
import { FILTERS, filterCounts, passes } from "./picture_filters.js";
import { TAG_WORK, hasTag } from "./tags.js";
import { language, t } from "./words.js";

/** @typedef {import("./editor_edits.js").Picture} Picture */
/** @typedef {import("./editor_edits.js").PictureSet} PictureSet */
/** @typedef {import("./picture_filters.js").Note} Note */

const BATCH = 60; // cards added at a time, so ten thousand pictures open at once
const NEAR_END_PX = 300;
const LOOK_MS = 800, PREVIEW_MS = 400, MOST_PREVIEWED = 200;

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

/** @typedef {import("./caption_form.js").CaptionOrder} CaptionOrder */
/** @typedef {(order: CaptionOrder, choice: import("./caption_form.js").Choice) => Promise<unknown>} StartCaptions */

export class Editor {
  /**
   * @param {import("./host.js").Host} host
   * @param {StartCaptions} [startCaptions] has captions written, where the host does it otherwise than by POST start
   */
  constructor(host, startCaptions) {
    this.host = host;
    /** @type {Map<string, Note[]>} picture -> what was noticed */
    this.notes = new Map();
    /** @type {Set<string>} chosen filters */
    this.chosen = new Set();
    /** @type {Map<string, string[]>} picture -> what is trained of the caption that is not saved yet */
    this.previews = new Map();
    /** @type {?string} */
    this.session = null;
    /** @type {PictureSet[]} */
    this.sets = [];
    /** @type {Picture[]} */
    this.pictures = [];
    /** @type {Picture[]} */
    this.filtered = [];
    this.edits = new Edits();
    this.drawn = 0; // cards
    this.looking = "";
    /** @type {Note[]} about the set as a whole */
    this.general = [];
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.previewing = undefined;
    style("loom-editor", STYLE);
    const button = (/** @type {string} */ textContent, /** @type {() => unknown} */ onclick, title = "") =>
      make("button", { textContent, onclick, title });
    this.find = make("input", { type: "text", placeholder: t("editor.find") });
    this.replacement = make("input", { type: "text", placeholder: t("editor.replace_by") });
    this.save = button(t("editor.save"), () => this.send());
    this.save.disabled = true;
    this.notice = make("div", { className: "notice", textContent: t("editor.run_first") });
    this.grid = make("div", { className: "grid" });
    this.chips = make("div", { className: "chips" });
    this.form = new CaptionForm(host, {
      start: startCaptions ?? ((order) => this.start(order)), session: () => this.session ?? "",
      counts: () => this.captionable(), reload: () => this.load(),
    });
    this.captions = button(t("editor.caption"), () => this.form.toggle(), t("editor.caption_hint"));
    this.tags = new TagList({
      captions: () => this.pictures.filter((one) => !this.edits.excluded(one)).map((one) => this.edits.caption(one)),
      chosen: () => this.redraw(), work: (work, tag, by) => this.workOnTags(work, tag, by),
    });
    this.root = make("div", { className: "loom loom-editor", lang: language },
      make("div", { className: "tools" }, this.find, this.replacement,
        button(t("editor.replace_all"), () => this.replace()), this.save,
        button(t("editor.undo"), () => this.undo(), t("editor.undo_hint")),
        button(t("editor.reload"), () => this.reload()), this.tags.button, this.captions, this.notice),
      this.form.root, this.chips, make("div", { className: "main" }, this.tags.root, this.grid));
    this.captions.disabled = this.tags.button.disabled = true;
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
    this.captions.disabled = this.tags.button.disabled = false;
    this.form.watch().catch(() => {}); // captions that are being written already
    await this.look(false);
  }

  /** Reads captions anew, and has the pictures looked at again. */
  async reload() {
    await this.load();
    await this.look(true);
  }

  /** Has a model write captions, on a page that has jobs of its own. */
  start(/** @type {CaptionOrder} */ order) {
    return this.host.postJson(route("start"), {
      settings: {}, work: "caption", more: { session: this.session, ...order },
    });
  }

  /**
   * Asks what was noticed about the pictures, until all were looked at.
   * @param {boolean} again
   */
  async look(again) {
    const { session } = this;
    if (!session) return;
    try {
      let seen = await this.host.fetchJson(route("dataset/notes", { session, again: again ? 1 : 0 }));
      while (!seen.ready && this.session === session) {
        await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
        if (!this.root.isConnected) return;
        seen = await this.host.fetchJson(route("dataset/notes", { session }));
        if (seen.total) this.looking = t("editor.looking", { done: seen.done, total: seen.total });
        this.count();
      }
      this.looking = "";
      if (this.session !== session) return;
      this.notes = new Map(Object.entries(seen.notes));
      this.general = seen.general;
      this.draw();
      this.count();
    } catch (error) {
      this.looking = "";
      say(this.notice, /** @type {Error} */ (error).message, true);
    }
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
    this.edits.load(pictures);
    const place = this.grid.scrollTop, shown = this.drawn;
    this.draw(shown);
    this.grid.scrollTop = place;
    this.count();
    this.preview();
  }

  count() {
    const out = this.pictures.filter((picture) => this.edits.excluded(picture)).length;
    const locked = this.sets.filter((set) => !set.editable).map((set) => set.label);
    const waiting = this.edits.size;
    this.save.disabled = !waiting;
    const parts = [t("editor.counts", { pictures: this.pictures.length, out })];
    if (waiting) parts.push(t("editor.waiting", { count: waiting }));
    if (locked.length) parts.push(t("editor.locked_sets", { sets: locked.join(", ") }));
    if (this.looking) parts.push(this.looking);
    say(this.notice, parts.join(" · "));
    this.drawChips();
    this.form.count();
  }

  /** A picture as filters see it. */
  asLook(/** @type {Picture} */ picture) {
    return {
      caption: this.edits.caption(picture), trigger: this.sets[picture.set].trigger,
      excluded: this.edits.excluded(picture), changed: this.edits.has(picture.id),
      notes: this.notes.get(picture.id) ?? [],
    };
  }

  /** How many captions a model could write, and what waits to be saved before. */
  captionable() {
    const able = this.pictures.filter((one) => !one.locked && this.editable(one) && !one.excluded);
    const empty = able.filter((one) => !one.caption).length;
    return { empty, all: able.length, unsaved: this.edits.size };
  }

  drawChips() {
    const counts = filterCounts(this.pictures.map((picture) => this.asLook(picture)));
    const shown = FILTERS.filter((filter) => counts[filter] || this.chosen.has(filter));
    const chips = shown.map((filter) => {
      const chip = make("button", {
        textContent: `${t(`editor.is_${filter}`)} ${counts[filter]}`, onclick: () => this.toggleFilter(filter),
      });
      chip.setAttribute("aria-pressed", String(this.chosen.has(filter)));
      return chip;
    });
    if (this.tags.tag) {
      const chip = make("button", { textContent: `${this.tags.tag} ✕`, onclick: () => this.tags.choose("") });
      chip.setAttribute("aria-pressed", "true");
      chips.push(chip);
    }
    this.chips.replaceChildren(...chips);
  }

  toggleFilter(/** @type {string} */ filter) {
    if (!this.chosen.delete(filter)) this.chosen.add(filter);
    this.redraw();
  }

  redraw() {
    this.draw();
    this.drawChips();
  }

  /**
   * Does something with a tag in the captions of all pictures that are shown.
   * @param {import("./editor_tags.js").TagWork} work
   * @param {string} tag
   * @param {string} by what takes its place
   */
  workOnTags(work, tag, by) {
    if (!tag && work !== "sort") return say(this.notice, t("editor.tag_first"), true);
    this.changeAll((caption, picture) =>
      TAG_WORK[work](caption, work === "sort" ? this.sets[picture.set].trigger : tag, by));
  }

  /**
   * Changes the captions of the pictures that are shown, as far as they can be, and says how many.
   * @param {(caption: string, picture: Picture) => string} work
   */
  changeAll(work) {
    let changed = 0;
    for (const picture of this.filtered) {
      if (picture.locked || !this.editable(picture)) continue;
      const before = this.edits.caption(picture), after = work(before, picture);
      if (after === before) continue;
      changed += 1;
      this.edits.edit(picture, after);
    }
    this.draw(this.drawn);
    this.count();
    this.preview();
    this.notice.textContent += ` · ${t("editor.replaced", { count: changed })}`;
  }

  /** Asks what is trained of the captions that are not saved yet, once nobody has typed for a moment. */
  preview() {
    clearTimeout(this.previewing);
    const { edited } = this.edits;
    for (const id of this.previews.keys()) if (!edited.has(id)) this.previews.delete(id);
    if (!edited.size) return;
    this.previewing = setTimeout(async () => {
      const captions = Object.fromEntries([...edited].slice(0, MOST_PREVIEWED));
      try {
        const { trained } = await this.host.postJson(route("dataset/trained"), { session: this.session, captions });
        for (const [id, texts] of Object.entries(trained)) {
          if (edited.get(id) === captions[id]) this.previews.set(id, texts);
        }
        for (const card of this.grid.children) /** @type {any} */ (card).loomTrained?.();
      } catch {
        // a caption too long to be one is told when it is saved
      }
    }, PREVIEW_MS);
  }

  editable(/** @type {Picture} */ picture) {
    return this.sets[picture.set].editable;
  }

  draw(atLeast = BATCH) {
    const wanted = this.find.value.toLowerCase();
    this.filtered = this.pictures.filter((picture) => {
      const caption = this.edits.caption(picture), { tag } = this.tags;
      return caption.toLowerCase().includes(wanted) && (!tag || hasTag(caption, tag))
        && passes(this.asLook(picture), this.chosen);
    });
    this.drawn = 0;
    this.grid.replaceChildren();
    this.more(Math.max(BATCH, atLeast));
    this.tags.draw();
  }

  more(count = BATCH) {
    const next = this.filtered.slice(this.drawn, this.drawn + count);
    this.drawn += next.length;
    this.grid.append(...next.map((picture) => cardOf(this, picture)));
  }

  /** Search and replace, in the captions of all pictures that are shown. */
  replace() {
    const old = this.find.value;
    if (!old) return say(this.notice, t("editor.find_first"), true);
    this.draw(); // those that have it, if nobody has typed since
    this.find.value = "";
    this.changeAll((caption) => replaced(caption, old, this.replacement.value));
  }

  async send() {
    await this.change("dataset/edit", this.edits.body(), (count) => t("editor.saved", { count }));
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
