// @ts-check
// The samples of a run: one of them large, all of them small below it.
import { route } from "./api.js";
import { make } from "./dom.js";
import { viewSamples } from "./viewer.js";
import { t } from "./words.js";

/** @typedef {import("./host.js").Host} Host */
/** @typedef {import("./train_panel.js").SampleMark} SampleMark */

const STRIP = 60; // small samples
const SMALL_PX = 128, LARGE_PX = 1024; // sides of a sample

export class PanelSamples {
  /** @param {Host} host */
  constructor(host) {
    this.host = host;
    this.run = "";
    /** @type {SampleMark[]} */
    this.marks = [];
    /** @type {?number} step of the sample shown large; null: the newest */
    this.chosen = null;
    this.drawn = ""; // what stands here, so that nothing is drawn twice
    this.newest = make("img", { draggable: false });
    const enlarge = make("button", { className: "newest", title: t("panel.enlarge"), onclick: () => this.enlarge() });
    enlarge.append(this.newest);
    this.before = make("div");
    this.strip = make("div", { className: "strip" });
    this.root = make("div", { className: "pictures", hidden: true }, enlarge,
      make("div", { className: "small" }, this.before, this.strip));
  }

  /** Goes back to the newest one. */
  restart() {
    this.chosen = null;
  }

  /**
   * @param {string} run
   * @param {SampleMark[]} marks
   */
  show(run, marks) {
    this.run = run;
    this.marks = marks;
    const content = JSON.stringify([run, marks, this.chosen]);
    if (this.drawn === content) return;
    this.drawn = content;
    this.root.hidden = !marks.length;
    if (marks.length) this.draw();
  }

  draw() {
    const { run, marks } = this, newest = marks[marks.length - 1];
    const large = marks.find(([step]) => step === this.chosen) ?? newest;
    this.newest.src = this.picture(run, large, LARGE_PX);
    this.newest.title = large[0] ? t("panel.sample_of", { step: large[0] }) : t("panel.before");
    const small = (/** @type {SampleMark} */ mark) => {
      const [step] = mark;
      const image = make("img", { src: this.picture(run, mark, SMALL_PX), draggable: false });
      const caption = make("figcaption", { textContent: step ? String(step) : t("panel.before") });
      const choose = () => {
        this.chosen = mark === newest ? null : step;
        this.show(run, marks);
      };
      return make("figure", { className: mark === large ? "chosen" : "", onclick: choose }, image, caption);
    };
    this.before.replaceChildren(...marks.filter(([step]) => !step).map(small)); // stays in sight beside the newest
    this.strip.replaceChildren(...marks.filter(([step]) => step).slice(-STRIP).map(small));
    if (this.chosen === null) this.strip.scrollLeft = this.strip.scrollWidth;
  }

  /** The samples on the whole page, beginning with the one that is shown. */
  async enlarge() {
    if (this.run) await viewSamples(this.host, this.run, this.chosen);
  }

  /**
   * The address of a sample picture.
   * @param {string} run
   * @param {SampleMark} mark
   * @param {number} size px of its longer side
   */
  picture(run, [step, time], size) {
    return this.host.imageUrl(route("panel/sample", { run, step, size, v: time }));
  }
}
