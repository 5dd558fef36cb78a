// @ts-check
// The form by which captions are written by a model: which one, for what, what to leave out; how far it is, and stop.
import { route } from "./api.js";
import { make, say, style } from "./dom.js";
import { said, t } from "./words.js";

/** @typedef {{ id: string, kind: "folder" | "clip" }} Choice a captioner the server knows */

/**
 * What is asked for.
 * @typedef {object} CaptionOrder
 * @property {string} captioner
 * @property {string} subject
 * @property {string} which
 * @property {string} leave_out
 * @property {string} prepend
 * @property {string} append
 */

/**
 * @typedef {object} Captioning
 * @property {string} status
 * @property {number} done
 * @property {number} total
 * @property {number} written
 * @property {string} name
 * @property {import("./words.js").Message[]} notes
 * @property {?import("./words.js").Message} error
 */

const POLL_MS = 600, RELOAD_MS = 2500;
const SUBJECTS = ["everything", "character", "style", "object"];
const EMPTY_ONES = "empty ones", ALL = "all";

const STYLE = `
.loom-captioning { display: flex; flex-direction: column; gap: 6px; padding: 8px; border-radius: 6px;
  background: rgba(127, 127, 127, .1); }
.loom-captioning .fields { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 6px; }
.loom-captioning label { display: flex; flex-direction: column; gap: 2px; min-width: 0; }
.loom-captioning label span { opacity: .8; }
.loom-captioning progress { flex: 1; height: 8px; accent-color: #4ea1ff; }
.loom-captioning [hidden] { display: none; }
`;

/** Whether captions are being written, or about to be. */
export const goesOn = (/** @type {?Captioning} */ now) => ["waiting", "running"].includes(now?.status ?? "");

/** What a captioner is called where there is little room. */
export const shortName = (/** @type {string} */ id) =>
  id.replace(/^captioners\//, "").replace(/\/model\.onnx$/, "");

export class CaptionForm {
  /**
   * @param {import("./host.js").Host} host
   * @param {object} of
   * @param {(order: CaptionOrder, choice: Choice) => Promise<unknown>} of.start
   * @param {() => string} of.session
   * @param {() => { empty: number, all: number, unsaved: number }} of.counts
   * @param {() => Promise<void>} of.reload shows the captions that were written
   */
  constructor(host, { start, session, counts, reload }) {
    this.host = host;
    this.begin = start;
    this.session = session;
    this.counts = counts;
    this.reload = reload;
    /** @type {Choice[]} */
    this.choices = [];
    this.watching = false;
    this.gaveUp = ""; // why nothing will be written any more
    style("loom-captioning", STYLE);
    this.captioner = make("select");
    this.subject = this.select(SUBJECTS.map((name) => [name, t(`captioning.${name}`)]));
    this.emptyOnes = make("option", { value: EMPTY_ONES });
    this.all = make("option", { value: ALL });
    this.which = make("select", {}, this.emptyOnes, this.all);
    this.leaveOut = make("input", { type: "text", placeholder: t("captioning.leave_out_example") });
    this.prepend = make("input", { type: "text" });
    this.append = make("input", { type: "text" });
    this.start = make("button", { onclick: () => this.send() });
    this.stop = make("button", { textContent: t("captioning.stop"), onclick: () => this.end(), hidden: true });
    this.bar = make("progress", { max: 1, value: 0, hidden: true });
    this.notice = make("div", { className: "notice" });
    const field = (/** @type {string} */ key, /** @type {HTMLElement} */ input) => {
      const name = make("span", { textContent: t(`captioning.${key}`) });
      return make("label", { title: t(`captioning.${key}_hint`) }, name, input);
    };
    this.root = make("div", { className: "loom-captioning", hidden: true },
      make("div", { className: "fields" }, field("captioner", this.captioner), field("subject", this.subject),
        field("which", this.which), field("leave_out", this.leaveOut), field("prepend", this.prepend),
        field("append", this.append)),
      make("div", { className: "tools" }, this.start, this.stop, this.bar), this.notice);
    this.which.addEventListener("change", () => this.count());
  }

  /** @param {[string, string][]} options */
  select(options) {
    const text = (/** @type {[string, string]} */ [value, textContent]) => make("option", { value, textContent });
    return make("select", {}, ...options.map(text));
  }

  /** Shows the form or puts it away. */
  async toggle() {
    this.root.hidden = !this.root.hidden;
    if (this.root.hidden) return;
    this.count();
    try {
      this.choices = (await this.host.fetchJson(route("dataset/captioners"))).captioners;
      const chosen = this.captioner.value;
      this.captioner.replaceChildren(...this.choices.map(({ id, kind }) =>
        make("option", { value: `${kind}:${id}`, textContent: shortName(id), title: id })));
      if (chosen) this.captioner.value = chosen;
      if (!this.choices.length) say(this.notice, t("captioning.no_captioner"), true);
    } catch (error) {
      say(this.notice, /** @type {Error} */ (error).message, true);
    }
    this.count();
    await this.watch();
  }

  /** Says how many captions would be written, and which of them are there already. */
  count() {
    const { empty, all } = this.counts();
    this.emptyOnes.textContent = t("captioning.empty_ones", { count: empty });
    this.all.textContent = t("captioning.all", { count: all });
    const replaced = this.which.value === ALL ? all - empty : 0;
    this.start.textContent = replaced ? t("captioning.replace", { count: replaced }) : t("captioning.start");
    this.start.disabled = this.watching || !this.choices.length || !(this.which.value === ALL ? all : empty);
  }

  async send() {
    const choice = this.choices.find(({ id, kind }) => `${kind}:${id}` === this.captioner.value);
    if (!choice) return;
    if (this.counts().unsaved) return say(this.notice, t("captioning.save_first"), true);
    const order = {
      captioner: choice.id, subject: this.subject.value, which: this.which.value, leave_out: this.leaveOut.value,
      prepend: this.prepend.value, append: this.append.value,
    };
    try {
      say(this.notice, t("captioning.waits"));
      this.start.disabled = true;
      const before = JSON.stringify(await this.now());
      await this.begin(order, choice);
      await this.watch(before);
    } catch (error) {
      say(this.notice, /** @type {Error} */ (error).message, true);
    }
    this.count();
  }

  /** @returns {Promise<?Captioning>} */
  async now() {
    return (await this.host.fetchJson(route("dataset/captioning", { session: this.session() }))).captioning;
  }

  async end() {
    try {
      await this.host.postJson(route("dataset/stop_captioning"), { session: this.session() });
    } catch (error) {
      say(this.notice, /** @type {Error} */ (error).message, true);
    }
  }

  /** Nothing more is waited for, as when the host could not begin. */
  failed(/** @type {string} */ text) {
    this.gaveUp = text;
  }

  /**
   * Follows the captioning until it ends, and shows what was written meanwhile.
   * @param {?string} [before] how it was before it was asked for: until it changes, it is waited for
   */
  async watch(before = null) {
    if (this.watching) return;
    let now = await this.now(), shown = 0, last = 0;
    const untouched = () => before !== null && JSON.stringify(now) === before;
    const pending = () => untouched() && !this.gaveUp;
    this.gaveUp = "";
    if (!goesOn(now) && !pending()) return;
    this.watching = true;
    this.stop.hidden = this.bar.hidden = false;
    try {
      while ((goesOn(now) || pending()) && this.root.isConnected) {
        this.draw(pending() ? null : now);
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
        now = await this.now();
        if (now && goesOn(now) && now.written > shown && Date.now() - last > RELOAD_MS) {
          [shown, last] = [now.written, Date.now()];
          await this.reload();
        }
      }
      await this.reload();
      if (untouched()) say(this.notice, this.gaveUp, true);
      else if (now) this.tell(now);
    } catch (error) {
      say(this.notice, /** @type {Error} */ (error).message, true);
    } finally {
      this.watching = false;
      this.stop.hidden = this.bar.hidden = true;
      this.count();
    }
  }

  draw(/** @type {?Captioning} */ now) {
    this.count();
    if (!now?.total) return;
    this.bar.max = now.total;
    this.bar.value = now.done;
    say(this.notice, `${now.done} / ${now.total} · ${now.name}`);
  }

  tell(/** @type {Captioning} */ { status, written, total, error, notes }) {
    const done = t(status === "stopped" ? "captioning.stopped" : "captioning.done", { written, total });
    const told = notes.slice(0, 3).map((note) => said(note)).join(" · ");
    if (status === "failed") say(this.notice, said(error), true);
    else say(this.notice, told ? `${done} ${told}` : done);
  }
}
