// @ts-check
// What a person may choose about the panel, in the host's settings. Nothing is counted and nothing is sent anywhere.
import { t } from "./words.js";

const LOSS_AXIS = "LoraLoom.panel.lossAxis", SAMPLE_SIZE = "LoraLoom.panel.sampleSize";
export const DROP_PICTURES = "LoraLoom.drop.pictures";
const MEDIUM_PX = 350;
/** @type {Record<string, number>} */
const HEIGHTS_PX = { small: 200, medium: MEDIUM_PX, large: 460 }; // of the samples

/** The choices as they are now. */
export class Settings {
  /** @param {Pick<import("./host.js").Host, "setting">} host */
  constructor(host) {
    this.host = host;
    /** @type {Record<string, unknown>} */
    this.changed = {}; // the host tells of a change before it can be asked for it
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /**
   * @param {string} id
   * @param {string} standard
   */
  choice(id, standard) {
    return String(this.changed[id] ?? this.host.setting(id) ?? standard);
  }

  /**
   * @param {string} id
   * @param {unknown} value
   */
  take(id, value) {
    this.changed[id] = value;
    this.listeners.forEach((listener) => listener());
  }

  logarithmicLoss() {
    return this.choice(LOSS_AXIS, "linear") === "logarithmic";
  }

  sampleHeight() {
    return HEIGHTS_PX[this.choice(SAMPLE_SIZE, "medium")] ?? MEDIUM_PX;
  }

  /**
   * Calls `listener` after each change; returns what ends that.
   * @param {() => void} listener
   */
  onChange(listener) {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  /** The entries for ComfyUI's settings. */
  entries() {
    return [
      this.combo(LOSS_AXIS, "loss_axis", ["linear", "logarithmic"], "linear"),
      this.combo(SAMPLE_SIZE, "sample_size", ["small", "medium", "large"], "medium"),
      {
        id: DROP_PICTURES, type: "boolean", defaultValue: true,
        name: t("settings.drop_pictures"), tooltip: t("settings.drop_pictures_tip"),
        category: ["LoRA Loom", t("settings.dropping"), t("settings.drop_pictures")],
        onChange: (/** @type {unknown} */ value) => this.take(DROP_PICTURES, value),
      },
    ];
  }

  /**
   * @param {string} id
   * @param {string} name
   * @param {string[]} values
   * @param {string} standard
   */
  combo(id, name, values, standard) {
    return {
      id, type: "combo", defaultValue: standard,
      name: t(`settings.${name}`), tooltip: t(`settings.${name}_tip`),
      category: ["LoRA Loom", t("settings.panel"), t(`settings.${name}`)],
      options: values.map((value) => ({ text: t(`settings.${value}`), value })),
      onChange: (/** @type {unknown} */ value) => this.take(id, value),
    };
  }
}
