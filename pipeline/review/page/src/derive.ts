// What follows from the data and the place: names, folders, the images that a filter leaves.
import { computed } from "@preact/signals";
import { alike, data } from "./data";
import { route } from "./route";
import type { Group, Images } from "./types";

/** Weak ones first, because they are the work; then large ones. Left-out ones are last. */
export const groups = computed<Group[]>(() => {
  const rank = { weak: 0, none: 1, strong: 2 };
  const key = (group: Group) => (group.ignored ? 3 : (rank[group.word] ?? 2));
  return [...(data.value?.groups ?? [])].sort((a, b) => key(a) - key(b) || b.size - a.size || a.number - b.number);
});

export const byNumber = computed(() => new Map((data.value?.groups ?? []).map((group) => [group.number, group])));

/** The name, or the suggestion with a question mark, or nothing. */
export const nameOf = (group: Group | undefined): string =>
  group ? group.name || (group.suggested ? `${group.suggested}?` : "") : "";

/** "8 · daisy?", or "group 8" where there is no name. */
export function titleOf(number: number): string {
  if (!number) return "no group";
  const name = nameOf(byNumber.value.get(number));
  return name ? `${number} · ${isolated(name)}` : `group ${number}`;
}

/** A name of any script keeps its direction to itself, in a list's options too, where no element can say so. */
const isolated = (name: string): string => (/[^\x20-\x7e]/.test(name) ? `\u2068${name}\u2069` : name);

export const fileOf = (source: string): string => source.slice(source.lastIndexOf("/") + 1);
export const folderOf = (source: string): string => source.slice(0, Math.max(0, source.lastIndexOf("/")));

// Paths do not change with edits, so what is made of them is kept as long as the column is the same.
const sources = computed(() => data.value?.images.source ?? []);
const lowered = computed(() => sources.value.map((source) => source.toLowerCase()));

/** Each folder that holds images, with their number, in order. */
export const folders = computed<[string, number][]>(() => {
  const counts = new Map<string, number>();
  for (const source of sources.value) counts.set(folderOf(source), (counts.get(folderOf(source)) ?? 0) + 1);
  return [...counts].sort((a, b) => (a[0] < b[0] ? -1 : 1));
});

export const splits = computed(() => [...new Set(data.value?.images.split ?? [])].filter(Boolean).sort());

export const dates = computed<[string, string]>(() => {
  let first = "";
  let last = "";
  for (const date of data.value?.images.date ?? []) {
    if (!date) continue;
    if (!first || date < first) first = date;
    if (date > last) last = date;
  }
  return [first, last];
});

/** The images that the filters leave, in the order that was asked for. */
export const shown = computed<number[]>(() => {
  const images = data.value?.images;
  if (!images) return [];
  const { group, state, folder, split, from, to, text, like } = route.value;
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const names = words.length ? textOfGroups() : new Map<number, string>();
  const paths = words.length ? lowered.value : [];
  const numbers = group === "" ? null : Number(group);
  const states = state === "" ? null : Number(state);
  const kept: number[] = [];
  const along = like ? null : sequence.value;
  for (let at = 0; at < images.source.length; at++) {
    const i = along ? along[at] : at;
    if (numbers !== null && images.group[i] !== numbers) continue;
    if (states !== null && images.state[i] !== states) continue;
    if (split && images.split[i] !== split) continue;
    if (from && !(images.date[i] >= from)) continue;
    if (to && !(images.date[i] && images.date[i] <= to)) continue;
    if (folder && !inFolder(images.source[i], folder)) continue;
    if (words.length) {
      const path = paths[i];
      const name = names.get(images.group[i]) ?? "";
      const label = images.label[i]?.toLowerCase() ?? "";
      if (!words.every((word) => path.includes(word) || name.includes(word) || label.includes(word))) continue;
    }
    kept.push(i);
  }
  return images.source[Number(like)] && like ? nearest(images, Number(like), kept, 120) : kept;
});

// "." stands for images that lie in no folder.
const inFolder = (source: string, folder: string): boolean =>
  folder === "." ? !source.includes("/") : source.startsWith(`${folder}/`);

const textOfGroups = () => new Map([...byNumber.value].map(([number, group]) => [number, nameOf(group).toLowerCase()]));

const ROOM = 2 ** 21; // more than there are images: a key and an image fit into one number

/** All images in the order that was asked for, or null as they came; filters walk along it, so they need not sort. */
const sequence = computed<Float64Array | null>(() => {
  const images = data.value?.images;
  const key = images && keyOf(images, route.value.order);
  if (!key) return null;
  // Sorted as plain numbers: with a comparison function 100,000 would take a fifth of a second.
  const packed = new Float64Array(images.source.length);
  for (let i = 0; i < packed.length; i++) packed[i] = key(i) * ROOM + i;
  packed.sort();
  for (let i = 0; i < packed.length; i++) packed[i] -= Math.floor(packed[i] / ROOM) * ROOM;
  return packed;
});

function keyOf(images: Images, order: string): ((i: number) => number) | null {
  switch (order) {
    case "unsure": return (i) => Math.round(1e6 * images.probability[i]);
    case "sure": return (i) => Math.round(1e6 * (1 - images.probability[i]));
    case "new": return (i) => 99999999 - Number(images.date[i].replaceAll("-", "")); // 20240503; none is last
    case "group": return (i) => images.group[i];
    default: return null;
  }
}

/** The nearest of `among`, the image itself first: as the server orders them; those that it leaves out by the map. */
export function nearest(images: Images, image: number, among: Iterable<number>, count: number): number[] {
  const order = alike(image);
  if (!order) return nearestOnMap(images, image, among, count);
  const rest = new Set(among);
  const found = order.filter((i) => rest.delete(i)).slice(0, count);
  return found.length === count ? found : [...found, ...nearestOnMap(images, image, rest, count - found.length)];
}

function nearestOnMap(images: Images, image: number, among: Iterable<number>, count: number): number[] {
  const distance = (i: number) => (images.x[i] - images.x[image]) ** 2 + (images.y[i] - images.y[image]) ** 2;
  return Array.from(among, (i) => [i === image ? -1 : distance(i), i])
    .sort((a, b) => a[0] - b[0])
    .slice(0, count)
    .map(([, i]) => i);
}

/** The images of a group, but for one. */
export function* members(images: Images, group: number, but: number): Generator<number> {
  for (let i = 0; i < images.group.length; i++) if (images.group[i] === group && i !== but) yield i;
}

/** A color for each group that neighbors in number do not share: hues a golden angle apart. */
export function colorOf(group: number): string {
  const hue = (group * 137.508) % 360;
  return `hsl(${hue.toFixed(0)} ${group % 2 ? 75 : 60}% ${group % 3 === 0 ? 42 : group % 3 === 1 ? 52 : 60}%)`;
}

export const percent = (share: number): string => `${Math.round(100 * share)} %`;
export const counted = (n: number, one: string): string => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
export const number = (n: number): string => n.toLocaleString("en");
