// @ts-check
// A card in the corner of the page for pictures on their way: how far they are, Cancel, what came of it.
import { route } from "./api.js";
import { make, style } from "./dom.js";
import { loose } from "./dropped.js";
import { fileSize } from "./figures.js";
import { Cancelled, Upload } from "./uploads.js";
import { language, said, t } from "./words.js";

/** @typedef {import("./dropped.js").Drop} Drop */
/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./uploads.js").Uploaded} Uploaded */

const MOST_NOTES = 12;

const STYLE = `
.loom-uploads { position: fixed; right: 24px; bottom: 72px; z-index: 1200; display: flex; flex-direction: column;
  gap: 10px; width: min(400px, calc(100vw - 48px)); height: auto; }
.loom-upload { display: flex; flex-direction: column; gap: 8px; height: auto; padding: 14px 16px; border-radius: 10px;
  font-size: 13px; background: var(--comfy-menu-bg, #202225); border: 1px solid var(--loom-line);
  box-shadow: 0 6px 24px rgba(0, 0, 0, .45); }
.loom-upload [hidden] { display: none !important; }
.loom-upload .title { font-size: 14px; font-weight: 600; overflow-wrap: anywhere; }
.loom-upload .bar { height: 6px; border-radius: 3px; background: rgba(127, 127, 127, .3); overflow: hidden; }
.loom-upload .bar > div { height: 100%; width: 0; background: #4ea1ff; }
.loom-upload.done .bar > div { background: #3fa65a; }
.loom-upload.bad .bar > div { background: #d9534a; }
.loom-upload .fact { overflow-wrap: anywhere; white-space: pre-wrap; }
.loom-upload .notes { max-height: 150px; overflow-y: auto; margin: 0; padding: 0 0 0 16px; user-select: text; }
.loom-upload .notes li { overflow-wrap: anywhere; }
.loom-upload .row { display: flex; flex-wrap: wrap; gap: 6px; justify-content: flex-end; }
.loom-upload .row input { flex: 1; }
.loom-upload button { padding: 5px 12px; font-size: 13px; }
`;

/** The place of all cards. */
function corner() {
  style("loom-upload", STYLE);
  const there = document.getElementById("loom-uploads");
  if (there) return there;
  const place = make("div", { id: "loom-uploads", className: "loom loom-uploads", lang: language });
  for (const event of ["wheel", "pointerdown", "keydown", "paste"]) {
    place.addEventListener(event, (e) => e.stopPropagation()); // not for the graph below
  }
  document.body.append(place);
  return place;
}

/** A card with a title, a bar, a line, a list of notes and a row of buttons. */
class Card {
  /** @param {string} title */
  constructor(title) {
    this.title = make("div", { className: "title", textContent: title });
    this.bar = make("div");
    this.fact = make("div", { className: "fact" });
    this.notes = make("ul", { className: "notes", hidden: true });
    this.row = make("div", { className: "row" });
    this.root = make("div", { className: "loom-upload" }, this.title,
      make("div", { className: "bar" }, this.bar), this.fact, this.notes, this.row);
    corner().append(this.root);
  }

  /**
   * @param {string} text
   * @param {() => unknown} onclick
   */
  button(text, onclick) {
    return make("button", { textContent: text, onclick });
  }

  close() {
    this.root.remove();
  }

  /** Shows how it ended. */
  end(/** @type {"done" | "bad"} */ how, /** @type {string} */ title, /** @type {string} */ fact) {
    this.root.classList.add(how);
    this.title.textContent = title;
    this.bar.style.width = "100%";
    this.fact.textContent = fact;
    this.row.replaceChildren(this.button(t("drop.close"), () => this.close()));
  }

  list(/** @type {string[]} */ notes) {
    this.notes.hidden = !notes.length;
    this.notes.replaceChildren(...notes.slice(0, MOST_NOTES).map((text) => make("li", { textContent: text })));
    const more = notes.length - MOST_NOTES;
    if (more > 0) this.notes.append(make("li", { textContent: t("drop.more", { count: more }) }));
  }
}

/** The name of a folder for pictures that came without one: the day they came. */
const dayName = () => t("drop.day_name", { day: new Date().toLocaleDateString("sv") });

/**
 * Sends a drop and shows it; the folder that came of it, or null where there is none.
 * @param {Host} host
 * @param {Drop} drop
 * @returns {Promise<?Uploaded>}
 */
export async function sendShown(host, drop) {
  const named = { ...drop, name: drop.name || dayName() };
  const card = new Card(t("drop.adding", { folder: named.name }));
  const upload = new Upload(host, named, (progress) => {
    card.bar.style.width = `${progress.total ? (100 * progress.done) / progress.total : 100}%`;
    card.fact.textContent = sentence(upload, progress);
    if (upload.finishing) cancel.disabled = true;
  });
  const cancel = card.button(t("drop.cancel"), () => {
    cancel.disabled = true;
    upload.cancel().catch(() => {}); // `send` tells what came of it
  });
  card.fact.textContent = t("drop.looking");
  card.row.append(cancel);
  try {
    const uploaded = await upload.send();
    const { folder, pictures, captions, notes } = uploaded;
    card.list(notes.map((note) => said(note)));
    const next = captions ? "" : `\n${t("drop.next")}`;
    card.end("done", t("drop.done", { folder }), t("drop.counts", { pictures, captions }) + next);
    return uploaded;
  } catch (error) {
    if (error instanceof Cancelled) card.end("bad", t("drop.cancelled"), t("drop.nothing_left"));
    else card.end("bad", t("drop.failed"), /** @type {Error} */ (error).message);
    return null;
  }
}

/**
 * @param {Upload} upload
 * @param {import("./uploads.js").Progress} progress
 */
function sentence(upload, { done, total, files, all, checking }) {
  if (checking) return t("drop.checking", { done, total });
  if (upload.finishing) return t("drop.finishing");
  return t("drop.progress", { files, all, done: fileSize(done), total: fileSize(total) });
}

/**
 * Asks for pictures: files, a folder, or the path of one that the server sees.
 * @param {Host} host
 * @param {(drop: Drop) => void} onDrop
 * @param {(folder: string) => void} onPlace called with the choice for a path that was typed
 */
export function askForPictures(host, onDrop, onPlace) {
  const card = new Card(t("drop.ask"));
  const chosen = (/** @type {boolean} */ folder) => {
    const input = make("input", { type: "file", multiple: true, webkitdirectory: folder });
    input.addEventListener("change", () => {
      card.close();
      if (input.files?.length) onDrop(loose(input.files));
    });
    input.click();
  };
  const path = make("input", { type: "text", placeholder: t("drop.path") });
  const use = async () => {
    try {
      const { folder } = await host.postJson(route("upload/place"), { folder: path.value });
      card.close();
      onPlace(folder);
    } catch (error) {
      card.fact.textContent = /** @type {Error} */ (error).message;
    }
  };
  path.addEventListener("keydown", (event) => { if (event.key === "Enter") use(); });
  card.root.querySelector(".bar")?.remove();
  card.fact.textContent = t("drop.how");
  card.notes.replaceWith(make("div", { className: "row" }, path, card.button(t("drop.use_path"), use)));
  card.row.replaceChildren(card.button(t("drop.choose_files"), () => chosen(false)),
    card.button(t("drop.choose_folder"), () => chosen(true)), card.button(t("drop.close"), () => card.close()));
}
