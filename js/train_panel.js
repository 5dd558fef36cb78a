// The panel in a train node: chart, samples, messages and buttons of its run. The server's state is asked for when the page opens and when an event was missed.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Chart } from "./chart.js";
import { MEDIUM, onSettings, sampleHeight } from "./settings.js";
import { findField, mark, toast, unmark } from "./fields.js";
import { language, said, t } from "./words.js";

const PANELS = ["LoraLoomTrainLora", "LoraLoomTrainEmbedding", "LoraLoomFindLearningRate"];
const ACTIVE = ["preparing", "training"];
const BUTTONS = ["stop", "save", "sample", "pause"];
const CHANGEABLE = ["steps", "save_every", "sample_prompt", "sample_every", "sample_cfg", "auto_fit"]; // taken from the node as it is when a run goes on
const MOST_ROWS = 30000, SILENCE_MS = 2500, BETWEEN_ASKS_MS = 400, STRIP = 60;
const IDLE_HEIGHT = 34, EMPTY_HEIGHT = 130, HEIGHT = 470, WIDTH = 440;

const STYLE = `
.loom-panel { display: flex; flex-direction: column; gap: 5px; width: 100%; height: 100%; box-sizing: border-box; padding: 6px; overflow: hidden;
  font: 12px/1.35 system-ui, sans-serif; color: var(--input-text, #ddd); }
.loom-panel > * { flex: none; }
.loom-panel.idle > :not(.head) { display: none; }
.loom-panel.empty > .chart, .loom-panel.empty > .legend { display: none; }
.loom-panel [hidden] { display: none !important; }
.loom-panel .head { display: flex; flex-wrap: wrap; gap: 3px 8px; align-items: center; }
.loom-panel .status { padding: 1px 8px; border-radius: 9px; background: rgba(127, 127, 127, .25); font-weight: 600; }
.loom-panel .status.training { background: #2563b8; color: #fff; }
.loom-panel .status.finished, .loom-panel .status.stopped { background: #2b7a3d; color: #fff; }
.loom-panel .status.failed { background: #b3352b; color: #fff; }
.loom-panel .status.paused, .loom-panel .status.cancelled, .loom-panel .status.interrupted { background: #8a6414; color: #fff; }
.loom-panel .bar { height: 4px; border-radius: 2px; background: rgba(127, 127, 127, .25); overflow: hidden; }
.loom-panel .bar > div { height: 100%; background: #4ea1ff; }
.loom-panel .buttons { display: flex; flex-wrap: wrap; gap: 4px; }
.loom-panel button { background: var(--comfy-input-bg, #333); color: inherit; border: 1px solid var(--border-color, #555); border-radius: 4px; padding: 3px 9px;
  cursor: pointer; font: inherit; }
.loom-panel button:disabled { opacity: .4; cursor: default; }
.loom-panel .error { padding: 6px 8px; border-radius: 5px; border-left: 4px solid #ff5f56; background: rgba(255, 95, 86, .16); user-select: text; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.loom-panel .chart { position: relative; flex: 1 1 150px; min-height: 130px; }
.loom-panel .chart canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; }
.loom-panel .chart .readout { position: absolute; left: 0; right: 0; bottom: -2px; text-align: center; font-size: 10px; opacity: .8; pointer-events: none;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; transform: translateY(100%); }
.loom-panel .legend { display: flex; flex-wrap: wrap; gap: 2px 10px; font-size: 11px; margin-top: 12px; }
.loom-panel .legend span::before { content: ""; display: inline-block; width: 10px; height: 3px; margin-right: 4px; vertical-align: middle; background: var(--c); }
.loom-panel .pictures { display: flex; gap: 6px; height: 132px; }
.loom-panel .pictures .newest { flex: none; height: 100%; max-width: 60%; object-fit: contain; border-radius: 4px; background: rgba(0, 0, 0, .25); }
.loom-panel .strip { flex: 1; display: flex; gap: 4px; overflow-x: auto; align-items: flex-start; }
.loom-panel .pictures figure { margin: 0; flex: none; width: 76px; text-align: center; font-size: 10px; cursor: pointer; }
.loom-panel .pictures figure.chosen img { outline: 2px solid #4ea1ff; }
.loom-panel .pictures figure img { width: 76px; height: 76px; object-fit: cover; object-position: left; border-radius: 3px; background: rgba(0, 0, 0, .25); }
.loom-panel .messages { max-height: 64px; overflow-y: auto; font-size: 11px; user-select: text; overflow-wrap: anywhere; }
.loom-panel .messages div + div { border-top: 1px solid rgba(127, 127, 127, .2); }
`;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function clock(seconds) {
  const s = Math.max(0, Math.round(seconds)), two = (n) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${Math.floor(s / 60)}:${two(s % 60)}`;
}

// Two rows as one, as the server joins them: first, last, lowest, highest, smoothed, rate, norm.
function joined(a, b) {
  const least = (x, y) => (x === null ? y : y === null ? x : Math.min(x, y)), most = (x, y) => (x === null ? y : y === null ? x : Math.max(x, y));
  return [a[0], b[1], least(a[2], b[2]), most(a[3], b[3]), b[4], b[5], most(a[6], b[6])];
}

// The ids under which a node runs: "12", or "5:12" for each place its subgraph is used in.
function executionIds(node) {
  const root = app.rootGraph ?? app.graph, found = [];
  const walk = (graph, prefix) => {
    if (graph === node.graph) found.push(prefix + node.id);
    for (const n of graph?._nodes ?? graph?.nodes ?? []) if (n.subgraph) walk(n.subgraph, `${prefix}${n.id}:`);
  };
  walk(root, "");
  return found;
}

function nodeById(id) {
  const parts = String(id).split(":");
  let graph = app.rootGraph ?? app.graph;
  for (const part of parts.slice(0, -1)) graph = graph?.getNodeById(Number(part))?.subgraph;
  return graph?.getNodeById(Number(parts.at(-1))) ?? null;
}

const workflowId = () => String((app.rootGraph ?? app.graph)?.id ?? "");

class TrainPanel {
  constructor(node) {
    this.node = node;
    this.state = null;
    this.rows = [];
    this.chosen = null; // step of the sample shown large; the newest while null
    this.heard = 0;
    this.asking = this.askAgain = false;
    this.marked = null;
    this.chart = new Chart();
    this.status = make("span", { className: "status", textContent: t("panel.idle") });
    this.line = make("span", { className: "line" });
    this.filled = make("div");
    this.buttons = Object.fromEntries(BUTTONS.map((name) => [name, make("button", { textContent: t(`panel.${name}`), title: t(`panel.${name}_tip`), onclick: () => this.ask(name) })]));
    this.goOn = make("button", { textContent: t("panel.go_on"), title: t("panel.go_on_tip"), onclick: () => this.continue() });
    this.error = make("div", { className: "error", hidden: true });
    this.legend = make("div", { className: "legend" });
    this.newest = make("img", { className: "newest", draggable: false });
    this.before = make("div");
    this.strip = make("div", { className: "strip" });
    this.pictures = make("div", { className: "pictures", hidden: true }, this.newest, this.before, this.strip);
    this.messages = make("div", { className: "messages" });
    this.controls = make("div", { className: "buttons" }, ...Object.values(this.buttons), this.goOn);
    this.root = make("div", { className: "loom-panel idle", lang: language }, make("style", { textContent: STYLE }), make("div", { className: "head" }, this.status, this.line),
      make("div", { className: "bar" }, this.filled), this.controls, this.error, this.chart.root, this.legend, this.pictures, this.messages);
    this.chart.risingRate = node.comfyClass === "LoraLoomFindLearningRate";
    this.offered = this.chart.risingRate ? ["stop"] : BUTTONS;
    for (const name of BUTTONS) this.buttons[name].hidden = !this.offered.includes(name);
    for (const scrolled of [this.strip, this.messages]) {
      scrolled.tabIndex = 0;
      scrolled.dataset.captureWheel = "true"; // Nodes 2.0: the wheel scrolls here once it was clicked
      scrolled.addEventListener("wheel", (e) => !e.ctrlKey && e.stopPropagation());
    }
    this.root.addEventListener("wheel", (e) => { // the classic renderer keeps the wheel over a widget from the graph
      if (!window.LiteGraph?.vueNodesMode && e.isTrusted) app.canvas?.canvas?.dispatchEvent(new WheelEvent("wheel", e));
    });
    for (const element of [this.before, this.strip, this.messages, this.error, this.controls]) element.addEventListener("pointerdown", (e) => e.stopPropagation());
    this.pictures.style.height = `${sampleHeight()}px`;
    this.deaf = onSettings(() => this.rearrange());
  }

  rearrange() {
    this.pictures.style.height = `${sampleHeight()}px`;
    this.chart.changed();
    if (this.state) this.grow();
  }

  dispose() {
    this.deaf();
    this.chart.dispose();
    this.unmark();
  }

  active() {
    return ACTIVE.includes(this.state?.status);
  }

  minHeight() {
    return !this.state ? IDLE_HEIGHT : this.root.classList.contains("empty") ? EMPTY_HEIGHT : HEIGHT + sampleHeight() - MEDIUM;
  }

  last() {
    return this.rows.length ? this.rows[this.rows.length - 1][1] : 0;
  }

  // An event: small news, and how much it does not tell.
  take(event) {
    this.heard = performance.now();
    const fresh = !this.state || event.session !== this.state.session;
    const missed = fresh || event.changes !== this.state.changes || (event.rows.length > 0 && event.rows[0][0] > this.last() + 1);
    const before = fresh ? null : this.state.status;
    if (fresh) this.restart();
    const { rows, changes, ...news } = event;
    this.state = { probes: [], saves: [], samples: [], messages: [], result: {}, sentence: "", ...(fresh ? {} : this.state), ...news, live: true };
    if (!missed) this.add(rows);
    this.show();
    if (missed || before !== event.status) this.refresh();
  }

  restart() {
    this.rows = [];
    this.chosen = null;
    this.chart.view = null;
    this.unmark();
  }

  add(rows) {
    for (const row of rows) {
      if (row[1] <= this.last()) continue;
      if (row[0] <= this.last()) row[0] = this.last() + 1;
      this.rows.push(row);
    }
    if (this.rows.length > MOST_ROWS) {
      const half = [];
      for (let n = 0; n < this.rows.length; n += 2) half.push(n + 1 < this.rows.length ? joined(this.rows[n], this.rows[n + 1]) : this.rows[n]);
      this.rows = half;
    }
    this.chart.rows = this.rows;
    this.chart.changed();
  }

  // Asks for the whole state, with the rows that are not here yet. One question at a time.
  async refresh() {
    if (this.asking) return void (this.askAgain = true);
    this.asking = true;
    try {
      const workflow = encodeURIComponent(workflowId()), session = encodeURIComponent(this.state?.session ?? "");
      for (const id of executionIds(this.node)) {
        const response = await api.fetchApi(`/lora_loom/panel?node=${encodeURIComponent(id)}&workflow=${workflow}&session=${session}&after=${this.last()}`);
        const panel = response.ok ? (await response.json()).panel : null;
        if (panel) { this.set(panel); break; }
      }
      this.heard = performance.now();
    } catch {
      if (this.active()) this.line.textContent = t("panel.server_gone");
    }
    await new Promise((done) => setTimeout(done, BETWEEN_ASKS_MS));
    this.asking = false;
    if (this.askAgain) { this.askAgain = false; this.refresh(); }
  }

  set(panel) {
    if (panel.kind && panel.kind !== this.node.comfyClass) return; // another node had this id then
    const { rows, ...news } = panel, before = this.state;
    if (before && before.session !== news.session) this.restart();
    this.state = { ...news, live: before?.session === news.session && before.live };
    this.add(rows);
    this.show();
    this.announce(before?.session === news.session ? before : null);
  }

  // What happens once, in the page that saw the run: lists of the loaders, and a toast.
  announce(before) {
    const { live, status, result, sentence, session } = this.state;
    if (!live) return;
    if (result.files && JSON.stringify(result.files) + status !== this.listed) {
      this.listed = JSON.stringify(result.files) + status;
      Promise.resolve((app.reloadNodeDefs ?? app.refreshComboInNodes)?.call(app)).catch(() => {}); // the first says nothing of its own
    }
    const once = `${session} ${status}`;
    if (this.told === once || ACTIVE.includes(status)) return;
    this.told = once;
    if (status === "failed") toast("error", said(sentence), 15000);
    else if (result.files?.length) {
      const example = result.comfyui ? "" : (this.state.inputs?.sample_prompt ?? "").split("\n")[0].trim(); // no word of its own: what the samples were drawn with
      const lines = [t("panel.made", { files: result.files.join(", ") })];
      if (result.trigger) lines.push(t("panel.trigger", result));
      const prompt = result.comfyui || example;
      lines.push(result.lora ? t("panel.in_comfyui_lora", { file: result.files[0], prompt }) : `ComfyUI: ${prompt}`);
      lines.push(`A1111: ${[example, result.a1111].filter(Boolean).join(", ")}`);
      toast("success", lines.join("\n"), 15000);
    }
  }

  show() {
    const s = this.state, height = this.minHeight();
    this.root.classList.toggle("empty", !this.rows.length && !s.probes.length && !this.active()); // failed before it began
    if (this.root.classList.contains("idle") || height !== this.minHeight()) {
      this.root.classList.remove("idle");
      this.grow();
    }
    this.status.className = `status ${s.status}`;
    this.status.textContent = t(`panel.${s.status}`);
    this.line.textContent = this.sentence(s);
    this.filled.style.width = `${s.steps ? (100 * s.step) / s.steps : 0}%`;
    for (const name of this.offered) {
      this.buttons[name].disabled = s.status !== "training";
      this.buttons[name].hidden = !this.active();
    }
    this.controls.hidden = !this.active() && !s.can_continue;
    this.goOn.hidden = !s.can_continue || this.active();
    this.error.hidden = !s.sentence;
    this.error.textContent = said(s.sentence ?? "");
    s.status === "failed" ? this.mark() : this.unmark();
    Object.assign(this.chart, { probes: s.probes, saves: s.saves, samples: s.samples.map((p) => p[0]) });
    this.chart.changed();
    this.showLegend(s);
    this.showSamples(s);
    this.showMessages(s.messages);
  }

  sentence(s) {
    const parts = [];
    if (s.status === "preparing") return said(s.doing);
    if (s.steps) parts.push(t("panel.step", s));
    if (s.status === "training" && s.speed > 0) {
      parts.push(s.speed >= 1 ? t("panel.per_second", { n: s.speed.toFixed(1) }) : t("panel.per_step", { n: (1 / s.speed).toFixed(1) }));
      if (s.left_s !== null) parts.push(t("panel.left", { time: clock(s.left_s) }));
    }
    if (s.memory && this.active()) parts.push(t("panel.memory", { of: s.memory.of, used: (s.memory.used / 2 ** 30).toFixed(1), total: (s.memory.total / 2 ** 30).toFixed(1) }));
    if (s.run) parts.push(s.run);
    return parts.join(" · ");
  }

  showLegend(s) {
    const parts = [["loss", "rgba(90, 160, 255, .6)"], ["smoothed", "#4ea1ff"], ["rate", "#d99a2b"]];
    if (s.probes.length) parts.push(["held_out", "#ff7b6b"], ["trained", "#62c370"]);
    if (s.saves.length) parts.push(["saves", "#62c370"]);
    if (s.samples.length) parts.push(["samples", "#c58af9"]);
    const key = parts.map((p) => p[0]).join();
    if (key === this.legendShown) return;
    this.legendShown = key;
    this.legend.replaceChildren(...parts.map(([name, colour]) => {
      const entry = make("span", { textContent: t(`panel.${name}`) });
      entry.style.setProperty("--c", colour);
      return entry;
    }));
  }

  picture(sample, size) {
    return api.apiURL(`/lora_loom/panel/sample?run=${encodeURIComponent(this.state.run)}&step=${sample[0]}&size=${size}&v=${sample[1]}`);
  }

  showSamples(s) {
    const key = JSON.stringify([s.run, s.samples, this.chosen]);
    if (key === this.samplesShown) return;
    this.samplesShown = key;
    this.pictures.hidden = !s.samples.length;
    if (!s.samples.length) return;
    const newest = s.samples[s.samples.length - 1], large = s.samples.find((p) => p[0] === this.chosen) ?? newest;
    this.newest.src = this.picture(large, 1024);
    this.newest.title = large[0] ? t("panel.sample_of", { step: large[0] }) : t("panel.before");
    const small = (sample) => make("figure", {
      className: sample === large ? "chosen" : "",
      onclick: () => { this.chosen = sample === newest ? null : sample[0]; this.showSamples(this.state); },
    }, make("img", { src: this.picture(sample, 128), draggable: false }), make("figcaption", { textContent: sample[0] ? String(sample[0]) : t("panel.before") }));
    this.before.replaceChildren(...s.samples.filter((p) => !p[0]).map(small)); // stays in sight beside the newest
    this.strip.replaceChildren(...s.samples.filter((p) => p[0]).slice(-STRIP).map(small));
    if (this.chosen === null) this.strip.scrollLeft = this.strip.scrollWidth;
  }

  showMessages(messages) {
    const key = `${messages.length} ${messages[messages.length - 1] ?? ""}`;
    if (key === this.messagesShown) return;
    this.messagesShown = key;
    this.messages.replaceChildren(...messages.map((text) => make("div", { textContent: said(text) })));
    this.messages.scrollTop = this.messages.scrollHeight;
  }

  mark() {
    if (this.marked || !this.state.sentence) return;
    this.marked = findField(this.node, this.state.sentence);
    if (this.marked) mark(this.marked);
  }

  unmark() {
    if (this.marked) unmark(this.marked);
    this.marked = null;
  }

  grow() {
    const [width, height] = this.node.size, grows = Boolean(window.LiteGraph?.vueNodesMode); // Nodes 2.0 gives a widget the room its content needs
    Object.assign(this.root.style, grows ? { minHeight: `${this.minHeight()}px`, maxHeight: `${1.4 * this.minHeight()}px` } : { minHeight: "", maxHeight: "" });
    this.node.setSize?.([Math.max(width, WIDTH), grows ? height : Math.max(height, this.node.computeSize?.()[1] ?? 0)]);
    this.node.setDirtyCanvas?.(true, true);
  }

  async ask(what) {
    try {
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ node: this.state.node }) };
      const response = await api.fetchApi(`/lora_loom/${what}`, options);
      const answer = await response.json();
      toast(response.ok ? "info" : "warn", response.ok ? t(`panel.asked_${what}`) : said(answer.error), 4000);
    } catch (error) {
      toast("error", t("panel.refused", { why: said(error.message) }));
    }
  }

  // Queues the workflow again: this node with the values its run was started with, continuing that run.
  async continue() {
    try {
      const prompt = await app.graphToPrompt(), inputs = prompt.output[this.state.node]?.inputs;
      if (!inputs) throw new Error(this.state.node);
      for (const [name, value] of Object.entries(this.state.inputs ?? {})) {
        if (name in inputs && !Array.isArray(inputs[name]) && !CHANGEABLE.includes(name)) inputs[name] = value;
      }
      Object.assign(inputs, { name: this.state.run, resume: "continue last" });
      this.goOn.disabled = true;
      await api.queuePrompt(0, prompt);
    } catch (error) {
      toast("error", t("panel.refused", { why: said(error.message) }));
    }
    this.goOn.disabled = false;
  }
}

function* panels(graph = app.rootGraph ?? app.graph) {
  for (const node of graph?._nodes ?? graph?.nodes ?? []) {
    if (node.loomPanel) yield node.loomPanel;
    if (node.subgraph) yield* panels(node.subgraph);
  }
}

const refreshAll = () => [...panels()].forEach((panel) => panel.refresh());

api.addEventListener("lora_loom.panel", ({ detail }) => {
  const panel = nodeById(detail.node)?.loomPanel, here = workflowId();
  if (!panel || (detail.workflow && here && detail.workflow !== here && panel.state?.session !== detail.session)) return;
  if (!detail.kind || detail.kind === panel.node.comfyClass) panel.take(detail);
});
api.addEventListener("reconnected", refreshAll);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refreshAll());
setInterval(() => { // an event may be lost, and a tab that does not read can hold up those of all
  if (document.visibilityState !== "visible") return;
  for (const panel of panels()) if (panel.active() && performance.now() - panel.heard > SILENCE_MS) panel.refresh();
}, 1000);

app.registerExtension({
  name: "lora_loom.panel",
  nodeCreated(node) {
    if (!PANELS.includes(node.comfyClass)) return;
    const panel = new TrainPanel(node);
    const widget = node.addDOMWidget("loom_panel", "lora_loom_panel", panel.root, {
      serialize: false, hideOnZoom: false, getMinHeight: () => panel.minHeight(), getValue: () => undefined, setValue() {},
    });
    widget.serialize = false;
    node.loomPanel = panel;
    const removed = node.onRemoved;
    node.onRemoved = function () {
      panel.dispose();
      return removed?.apply(this, arguments);
    };
  },
  afterConfigureGraph: refreshAll,
});
