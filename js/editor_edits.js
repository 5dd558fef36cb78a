// @ts-check
// What was changed of a dataset and waits to be saved: captions, and which pictures are left out.

/** @typedef {{ label: string, editable: boolean, trigger: string, paired?: boolean }} PictureSet */

/**
 * A picture of a dataset. `set`: the index of its set; `locked`: why its caption cannot be edited.
 * @typedef {object} Picture
 * @property {string} id
 * @property {number} set
 * @property {string} name
 * @property {string} caption
 * @property {string[]} trained what is trained of the caption that is saved: with trigger, prefix, rules of the set
 * @property {boolean} excluded
 * @property {?import("./words.js").Message} locked
 * @property {number} width
 * @property {number} height
 * @property {string[]} [controls] names of the control pictures that a model is shown beside it
 */

export class Edits {
  constructor() {
    /** @type {Map<string, string>} picture -> new caption */
    this.edited = new Map();
    /** @type {Map<string, boolean>} picture -> left out or not */
    this.flipped = new Map();
    /** @type {Map<string, string>} picture -> caption as it was when it was loaded */
    this.loaded = new Map();
  }

  /** How many changes wait. */
  get size() {
    return this.edited.size + this.flipped.size;
  }

  /** Whether something of a picture waits. */
  has(/** @type {string} */ id) {
    return this.edited.has(id) || this.flipped.has(id);
  }

  caption(/** @type {Picture} */ picture) {
    return this.edited.get(picture.id) ?? picture.caption;
  }

  excluded(/** @type {Picture} */ picture) {
    return this.flipped.get(picture.id) ?? picture.excluded;
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

  /** The pictures were loaded anew: what waits stays, unless it was saved or its caption changed elsewhere. */
  load(/** @type {Picture[]} */ pictures) {
    const now = new Map(pictures.map((picture) => [picture.id, picture]));
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
    this.loaded = new Map(pictures.map((picture) => [picture.id, picture.caption]));
  }

  /** What is sent to be saved: each caption as it was seen and as it shall be. */
  body() {
    /** @type {Record<string, [string, string]>} */
    const captions = {};
    for (const [id, caption] of this.edited) captions[id] = [this.loaded.get(id) ?? "", caption];
    return { captions, excluded: Object.fromEntries(this.flipped) };
  }
}
