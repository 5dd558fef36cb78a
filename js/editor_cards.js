// @ts-check
// How one picture stands in the Dataset Editor: as a card of the grid, and on the whole page.
import { route } from "./api.js";
import { make } from "./dom.js";
import { gravest } from "./picture_filters.js";
import { PictureView } from "./picture_view.js";
import { said, t } from "./words.js";

/** @typedef {import("./dataset_editor.js").Editor} Editor */
/** @typedef {import("./editor_edits.js").Picture} Picture */

const MOST_NOTES = 3; // shown

/**
 * What is trained of a picture's caption, where that is not the caption itself.
 * @param {Editor} editor
 * @param {Picture} picture
 */
export function trainedText({ edits, previews }, picture) {
  const texts = edits.edited.has(picture.id) ? previews.get(picture.id) ?? [] : picture.trained ?? [];
  const text = texts.join(" | ");
  if (!texts.length || text === edits.caption(picture)) return "";
  return text ? t("editor.trained", { text }) : t("editor.trained_empty");
}

/**
 * What was noticed about a picture, the gravest first.
 * @param {Editor} editor
 * @param {Picture} picture
 */
function notesOf(editor, picture) {
  const notes = editor.notes.get(picture.id) ?? [];
  const lines = notes.slice(0, MOST_NOTES).map((note) =>
    make("div", { className: note.severity, textContent: said(note), title: t(`editor.${note.severity}`) }));
  return make("div", { className: "loom-notes" }, ...lines);
}

/**
 * @param {Editor} editor
 * @param {string} id of a picture, or of one of its control pictures
 * @param {boolean} [large]
 */
function thumb({ host, session }, id, large = false) {
  return host.imageUrl(route("dataset/thumb", { session: String(session), id, ...(large ? { large: 1 } : {}) }));
}

/**
 * A picture with its control pictures at its left, or with a word where its set has such and it has none.
 * @param {Editor} editor
 * @param {Picture} picture
 * @param {HTMLElement} image
 */
function pair(editor, picture, image) {
  if (!editor.sets[picture.set].paired) return image;
  const names = picture.controls ?? [];
  const controls = names.map((name, n) => make("img", {
    loading: "lazy", draggable: false, alt: name, title: `${t("editor.control")}: ${name}`,
    src: thumb(editor, `${picture.id}-${n}`),
  }));
  const none = make("span", { className: "none", textContent: t("editor.no_control") });
  return make("div", { className: "pair" },
    make("div", { className: "controls" }, ...(controls.length ? controls : [none])), image);
}

/**
 * The card of a picture; `loomTrained` draws anew what is trained of its caption.
 * @param {Editor} editor
 * @param {Picture} picture
 */
export function cardOf(editor, picture) {
  const { edits } = editor, { id, name, locked } = picture, editable = editor.editable(picture);
  const text = make("textarea", {
    value: edits.caption(picture), readOnly: !editable || Boolean(locked), title: said(locked), spellcheck: false,
  });
  const tick = make("input", { type: "checkbox", checked: !edits.excluded(picture), disabled: !editable });
  const trained = make("div", { className: "loom-trained" });
  const card = make("div", { className: `card ${gravest(editor.notes.get(id) ?? [])}` },
    pair(editor, picture, make("img", {
      loading: "lazy", draggable: false, alt: name, src: thumb(editor, id), title: t("editor.view"),
      onclick: () => viewPicture(editor, picture),
    })),
    make("div", { className: "name", textContent: `${name} · ${picture.width} × ${picture.height}`, title: name }),
    text, trained, notesOf(editor, picture), make("label", {}, tick, t("editor.train_on_it")));
  const drawTrained = () => {
    trained.textContent = trained.title = trainedText(editor, picture);
    trained.hidden = !trained.textContent;
  };
  const mark = () => {
    card.classList.toggle("out", edits.excluded(picture));
    card.classList.toggle("changed", edits.has(id));
    drawTrained();
  };
  text.addEventListener("input", () => {
    edits.edit(picture, text.value);
    mark();
    editor.count();
    editor.preview();
  });
  text.addEventListener("change", () => editor.tags.draw());
  tick.addEventListener("change", () => {
    edits.exclude(picture, !tick.checked);
    mark();
    editor.count();
  });
  mark();
  return Object.assign(card, { loomTrained: drawTrained });
}

/**
 * Shows a picture on the whole page, and those after it by the keys.
 * @param {Editor} editor
 * @param {Picture} picture
 */
function viewPicture(editor, picture) {
  const pictures = editor.filtered, { edits } = editor;
  const shown = (/** @type {number} */ n) => {
    const one = pictures[n], editable = editor.editable(one), notes = notesOf(editor, one);
    notes.append(make("div", { className: "loom-trained", textContent: trainedText(editor, one) }));
    return {
      name: `${one.name} · ${one.width} × ${one.height}`, src: thumb(editor, one.id, true), notes, editable,
      caption: edits.caption(one), readOnly: !editable || Boolean(one.locked), locked: said(one.locked),
      excluded: edits.excluded(one),
      edit: (/** @type {string} */ caption) => {
        edits.edit(one, caption);
        editor.count();
        editor.preview();
      },
      exclude: (/** @type {boolean} */ excluded) => {
        edits.exclude(one, excluded);
        editor.count();
      },
    };
  };
  const closed = (/** @type {number} */ n) => {
    editor.draw(Math.max(editor.drawn, n + 1));
    const at = editor.filtered.indexOf(pictures[n]);
    editor.grid.children[at]?.scrollIntoView?.({ block: "nearest" });
  };
  new PictureView(pictures.length, shown, closed).open(pictures.indexOf(picture));
}
