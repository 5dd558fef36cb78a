// @ts-check
// Captions as tags between commas: which there are, and what is done with them in many captions at once. A caption of
// several lines is several captions.

const lines = (/** @type {string} */ text) => text.split("\n");
const same = (/** @type {string} */ a, /** @type {string} */ b) => a.toLowerCase() === b.trim().toLowerCase();

/** The tags of a caption in their order. */
export const tagsOf = (/** @type {string} */ caption) =>
  lines(caption).flatMap((line) => line.split(",")).map((tag) => tag.trim()).filter(Boolean);

/**
 * How many captions have each tag, the most frequent first; capitals make no difference.
 * @param {string[]} captions
 * @returns {[string, number][]}
 */
export function tagCounts(captions) {
  /** @type {Map<string, [string, number]>} */
  const counts = new Map();
  for (const caption of captions) {
    const seen = new Set();
    for (const tag of tagsOf(caption)) {
      const key = tag.toLowerCase();
      if (seen.has(key)) continue;
      seen.add(key);
      counts.set(key, [counts.get(key)?.[0] ?? tag, (counts.get(key)?.[1] ?? 0) + 1]);
    }
  }
  return [...counts.values()].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
}

/** Whether a caption has a tag, whatever its case is. */
export const hasTag = (/** @type {string} */ caption, /** @type {string} */ tag) =>
  tagsOf(caption).some((one) => same(one, tag));

/**
 * What `work` makes of the tags of each line.
 * @param {string} caption
 * @param {(tags: string[]) => string[]} work
 */
function onTags(caption, work) {
  return lines(caption).map((line) => work(tagsOf(line)).join(", ")).join("\n");
}

/**
 * What can be done with the tags of a caption. `tag`: one or several between commas; `by`: what stands in their place.
 * @type {Record<"prepend" | "append" | "remove" | "exchange" | "sort",
 *   (caption: string, tag: string, by: string) => string>}
 */
export const TAG_WORK = {
  prepend: (caption, tag) => onTags(caption, (tags) => [...missing(tags, tag), ...tags]),
  append: (caption, tag) => onTags(caption, (tags) => [...tags, ...missing(tags, tag)]),
  remove(caption, tag) {
    const gone = tagsOf(tag);
    return gone.some((one) => hasTag(caption, one)) // else it stays to the letter
      ? onTags(caption, (tags) => tags.filter((own) => !gone.some((one) => same(own, one)))) : caption;
  },
  exchange(caption, tag, by) {
    const gone = tagsOf(tag);
    if (!gone.some((one) => hasTag(caption, one))) return caption;
    return onTags(caption, (tags) => {
      const place = tags.findIndex((own) => gone.some((one) => same(own, one)));
      const kept = (/** @type {string[]} */ some) => some.filter((own) => !gone.some((one) => same(own, one)));
      if (place < 0) return tags;
      const before = kept(tags.slice(0, place)), behind = kept(tags.slice(place));
      return [...before, ...missing([...before, ...behind], by), ...behind];
    });
  },
  /** By the alphabet, but for the tags named, as a trigger, which stay in front. */
  sort: (caption, tag) => onTags(caption, (tags) => {
    const first = tags.filter((own) => tagsOf(tag).some((one) => same(own, one)));
    return [...first, ...tags.filter((own) => !first.includes(own)).sort((a, b) => a.localeCompare(b))];
  }),
};

/**
 * Those of the tags in `wanted` that are not there yet.
 * @param {string[]} tags
 * @param {string} wanted
 */
function missing(tags, wanted) {
  return tagsOf(wanted).filter((one) => !tags.some((own) => same(own, one)));
}
