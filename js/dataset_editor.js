// The Dataset Editor's grid: captions to edit, search and replace, pictures to leave out, undo. Talks to /lora_loom/dataset*, which checks everything again.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { language, said, t } from "./words.js";

const BATCH = 60; // cards added at a time, so ten thousand pictures open at once

const STYLE = `
.loom-editor { display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; box-sizing: border-box; padding: 6px; font: 12px/1.4 system-ui, sans-serif;
  color: var(--input-text, #ddd); }
.loom-editor .bar { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
.loom-editor input[type=text], .loom-editor textarea { background: var(--comfy-input-bg, #222); color: inherit; border: 1px solid var(--border-color, #444); border-radius: 4px;
  padding: 3px 5px; font: inherit; min-width: 0; }
.loom-editor .bar input[type=text] { flex: 1 1 90px; }
.loom-editor button { background: var(--comfy-input-bg, #333); color: inherit; border: 1px solid var(--border-color, #555); border-radius: 4px; padding: 3px 9px; cursor: pointer; font: inherit; }
.loom-editor button:disabled { opacity: .45; cursor: default; }
.loom-editor .said { flex: 1 1 100%; min-height: 1.4em; }
.loom-editor .said.bad { color: #ff7b6b; }
.loom-editor .grid { flex: 1; overflow-y: auto; display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 8px; align-content: start; }
.loom-editor .card { display: flex; flex-direction: column; gap: 3px; border-radius: 6px; padding: 5px; background: rgba(127, 127, 127, .12); }
.loom-editor .card.out { opacity: .45; }
.loom-editor .card.changed { outline: 2px solid #e0a030; }
.loom-editor .card img { width: 100%; height: 130px; object-fit: contain; background: rgba(0, 0, 0, .2); border-radius: 4px; }
.loom-editor .card .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; opacity: .75; }
.loom-editor .card textarea { resize: vertical; min-height: 48px; width: 100%; box-sizing: border-box; }
.loom-editor .card label { display: flex; gap: 4px; align-items: center; }
`;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

class Editor {
  constructor() {
    this.session = null;
    this.pictures = [];
    this.edited = new Map(); // id -> new caption
    this.flipped = new Map(); // id -> left out or not
    this.seen = new Map(); // id -> caption as it was when it was loaded
    this.sets = [];
    this.find = make("input", { type: "text", placeholder: t("editor.find") });
    this.replacement = make("input", { type: "text", placeholder: t("editor.replace_by") });
    this.replaceAll = make("button", { textContent: t("editor.replace_all"), onclick: () => this.replace() });
    this.save = make("button", { textContent: t("editor.save"), disabled: true, onclick: () => this.send() });
    this.back = make("button", { textContent: t("editor.undo"), title: t("editor.undo_hint"), onclick: () => this.undo() });
    this.reload = make("button", { textContent: t("editor.reload"), onclick: () => this.load() });
    this.said = make("div", { className: "said", textContent: t("editor.run_first") });
    this.grid = make("div", { className: "grid" });
    this.root = make("div", { className: "loom-editor", lang: language }, make("style", { textContent: STYLE }),
      make("div", { className: "bar" }, this.find, this.replacement, this.replaceAll, this.save, this.back, this.reload, this.said), this.grid);
    this.find.addEventListener("input", () => this.draw());
    this.grid.addEventListener("scroll", () => {
      if (this.grid.scrollTop + this.grid.clientHeight > this.grid.scrollHeight - 300) this.more();
    });
    for (const event of ["wheel", "pointerdown", "keydown", "paste"]) this.root.addEventListener(event, (e) => e.stopPropagation()); // not for the canvas
  }

  say(text, bad = false) {
    this.said.textContent = text;
    this.said.classList.toggle("bad", bad);
  }

  async ask(path, body) {
    const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
    const response = await api.fetchApi(path, options);
    const answer = await response.json();
    if (!response.ok) throw new Error(said(answer.error));
    return answer;
  }

  async open(session) {
    this.session = session;
    this.root.style.maxHeight = window.LiteGraph?.vueNodesMode ? "620px" : ""; // Nodes 2.0 lets a widget grow with its content
    await this.load();
  }

  async load() {
    if (!this.session) return;
    try {
      const answer = await this.ask(`/lora_loom/dataset?session=${encodeURIComponent(this.session)}`);
      this.sets = answer.sets;
      this.pictures = answer.pictures;
      const now = new Map(this.pictures.map((p) => [p.id, p]));
      for (const [id, before] of this.seen) { // what waits to be saved stays, unless it was saved or its caption changed elsewhere
        if (now.get(id)?.caption !== before || this.edited.get(id) === before) this.edited.delete(id);
      }
      for (const id of this.edited.keys()) if (!now.has(id) || now.get(id).caption === this.edited.get(id)) this.edited.delete(id);
      for (const [id, out] of this.flipped) if (!now.has(id) || now.get(id).excluded === out) this.flipped.delete(id);
      this.seen = new Map(this.pictures.map((p) => [p.id, p.caption]));
      this.draw();
      this.count();
    } catch (error) {
      this.say(error.message, true);
    }
  }

  count() {
    const out = this.pictures.filter((p) => this.flipped.get(p.id) ?? p.excluded).length;
    const locked = this.sets.filter((s) => !s.editable).map((s) => s.label);
    const waiting = this.edited.size + this.flipped.size;
    this.save.disabled = !waiting;
    this.say([
      t("editor.counts", { pictures: this.pictures.length, out }),
      waiting ? t("editor.waiting", { count: waiting }) : "",
      locked.length ? t("editor.locked_sets", { sets: locked.join(", ") }) : "",
    ].filter(Boolean).join(" · "));
  }

  caption(picture) {
    return this.edited.get(picture.id) ?? picture.caption;
  }

  draw() {
    const wanted = this.find.value.toLowerCase();
    this.shown = this.pictures.filter((p) => !wanted || this.caption(p).toLowerCase().includes(wanted));
    this.drawn = 0;
    this.grid.replaceChildren();
    this.more();
  }

  more() {
    const next = this.shown.slice(this.drawn, this.drawn + BATCH);
    this.drawn += next.length;
    this.grid.append(...next.map((picture) => this.card(picture)));
  }

  card(picture) {
    const editable = this.sets[picture.set].editable;
    const text = make("textarea", { value: this.caption(picture), readOnly: !editable || Boolean(picture.locked), title: picture.locked, spellcheck: false });
    const out = make("input", { type: "checkbox", checked: !(this.flipped.get(picture.id) ?? picture.excluded), disabled: !editable });
    const card = make("div", { className: "card" },
      make("img", { loading: "lazy", draggable: false, alt: picture.name,
        src: api.apiURL(`/lora_loom/dataset/thumb?session=${encodeURIComponent(this.session)}&id=${picture.id}`) }),
      make("div", { className: "name", textContent: `${picture.name} · ${picture.width} × ${picture.height}`, title: picture.name }),
      text, make("label", {}, out, t("editor.train_on_it")));
    const mark = () => {
      card.classList.toggle("out", this.flipped.get(picture.id) ?? picture.excluded);
      card.classList.toggle("changed", this.edited.has(picture.id) || this.flipped.has(picture.id));
      this.count();
    };
    text.addEventListener("input", () => {
      if (text.value === picture.caption) this.edited.delete(picture.id);
      else this.edited.set(picture.id, text.value);
      mark();
    });
    out.addEventListener("change", () => {
      if (out.checked !== picture.excluded) this.flipped.delete(picture.id);
      else this.flipped.set(picture.id, !out.checked);
      mark();
    });
    card.classList.toggle("out", this.flipped.get(picture.id) ?? picture.excluded);
    card.classList.toggle("changed", this.edited.has(picture.id) || this.flipped.has(picture.id));
    return card;
  }

  replace() {
    const old = this.find.value;
    if (!old) return this.say(t("editor.find_first"), true);
    const pattern = new RegExp(old.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
    let changed = 0;
    for (const picture of this.pictures.filter((p) => this.sets[p.set].editable && !p.locked)) {
      const before = this.caption(picture);
      const after = before.replace(pattern, () => this.replacement.value);
      if (after === before) continue;
      changed += 1;
      if (after === picture.caption) this.edited.delete(picture.id);
      else this.edited.set(picture.id, after);
    }
    this.find.value = "";
    this.draw();
    this.count();
    if (changed) this.said.textContent += ` · ${t("editor.replaced", { count: changed })}`;
  }

  async send() {
    const captions = {}, excluded = Object.fromEntries(this.flipped);
    for (const [id, text] of this.edited) captions[id] = [this.pictures.find((p) => p.id === id).caption, text];
    await this.change("/lora_loom/dataset/edit", { captions, excluded }, (n) => t("editor.saved", { count: n }));
  }

  undo() {
    return this.change("/lora_loom/dataset/undo", {}, (n) => t(n ? "editor.taken_back" : "editor.nothing_to_undo", { count: n }));
  }

  async change(path, body, sentence) {
    try {
      const { changed } = await this.ask(path, { session: this.session, ...body });
      await this.load();
      this.said.textContent = sentence(changed);
      return changed;
    } catch (error) {
      this.say(error.message, true);
      return 0;
    }
  }
}

app.registerExtension({
  name: "lora_loom.dataset_editor",
  nodeCreated(node) {
    if (node.comfyClass !== "LoraLoomDatasetEditor") return;
    const editor = new Editor();
    const widget = node.addDOMWidget("loom_editor", "lora_loom_dataset_editor", editor.root, {
      serialize: false, hideOnZoom: false, getMinHeight: () => 420, getValue: () => undefined, setValue() {},
    });
    widget.serialize = false;
    node.loomEditor = editor;
    node.setSize([Math.max(node.size[0], 640), Math.max(node.size[1], 560)]);
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (output?.loom_dataset?.length) editor.open(output.loom_dataset[0]);
    };
  },
});
