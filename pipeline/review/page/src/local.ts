// The single file has no server: corrections stay in the page until they are copied as scan edit commands.
import { signal } from "@preact/signals";
import type { Data, Edit, Group } from "./types";

export const corrections = signal<Edit[]>([]);
let base: Data | null = null; // as embedded; undo applies all corrections but the last to it anew

export function editLocally(before: Data, body: Edit): [Data, string] {
  base ??= before;
  if (body.action === "undo") {
    if (!corrections.value.length) throw new Error("there is nothing to undo");
    keep(corrections.value.slice(0, -1));
    return [{ ...corrections.value.reduce(applied, base), version: before.version + 1 }, "taken back"];
  }
  const next = { ...applied(before, body), version: before.version + 1 }; // as the server counts
  keep([...corrections.value, body]);
  return [next, `${describe(body)}; copy corrections when you are done`];
}

// A reload keeps them; another file at the same place, of a later run, does not get them.
const place = (): string => `scan corrections ${location.pathname} ${document.getElementById("data")?.textContent?.length}`;

function keep(edits: Edit[]): void {
  corrections.value = edits;
  try {
    sessionStorage.setItem(place(), JSON.stringify(edits));
  } catch { /* then a reload begins anew */ }
}

/** The data with the corrections that were made before a reload. */
export function restored(data: Data): Data {
  base = data;
  try {
    corrections.value = JSON.parse(sessionStorage.getItem(place()) ?? "[]") as Edit[];
  } catch { /* nothing is kept */ }
  return corrections.value.reduce(applied, data);
}

function describe(body: Edit): string {
  switch (body.action) {
    case "name": return body.name ? `group ${body.group} is '${body.name}' now` : `group ${body.group} has no name now`;
    case "merge": return `groups ${body.groups.join(", ")} are group ${body.groups[0]} now`;
    case "split": return `group ${body.group} will be split when the command runs`;
    case "move": return `${body.images.length} moved to group ${body.group}`;
    case "answer": return body.group === null ? "left as it is" : `answered: group ${body.group}`;
    case "ignore": return `group ${body.group} is ${body.ignored ? "left out" : "taken in again"}`;
    default: return "kept";
  }
}

function applied(data: Data, body: Edit): Data {
  const change = (number: number, with_: Partial<Group>): Group[] =>
    data.groups.map((group) => (group.number === number ? { ...group, ...with_ } : group));
  switch (body.action) {
    case "name": return { ...data, groups: change(body.group, { name: body.name }) };
    case "ignore": return { ...data, groups: change(body.group, { ignored: body.ignored }) };
    case "suggested":
      return { ...data, groups: data.groups.map((g) => (!g.name && g.suggested ? { ...g, name: g.suggested } : g)) };
    case "merge": return merge(data, body.groups);
    case "move": return move(data, body.images, body.group);
    case "answer": {
      const moved = body.group !== null && data.images.group[body.image] !== body.group
        ? move(data, [body.image], body.group) : data;
      const answered = [...moved.images.answered];
      answered[body.image] = 1;
      return { ...moved, images: { ...moved.images, answered } };
    }
    default: return data;
  }
}

function merge(data: Data, numbers: number[]): Data {
  const kept = numbers[0];
  const joined = data.groups.filter((group) => numbers.includes(group.number));
  const states: Record<string, number> = {};
  for (const group of joined) for (const [state, n] of Object.entries(group.states)) states[state] = (states[state] ?? 0) + n;
  // The first prototypes of each, so that the card shows what it is made of now.
  const each = Math.ceil(8 / joined.length);
  const groups = data.groups
    .filter((group) => group.number === kept || !numbers.includes(group.number))
    .map((group) => group.number !== kept ? group : {
      ...group, states, size: joined.reduce((sum, one) => sum + one.size, 0),
      prototypes: joined.flatMap((one) => one.prototypes.slice(0, each)).slice(0, 8),
      least_sure: joined.flatMap((one) => one.least_sure.slice(0, each)).slice(0, 4),
      classes: [],
    });
  const group = data.images.group.map((number) => (numbers.includes(number) ? kept : number));
  return { ...data, groups, images: { ...data.images, group }, run: { ...data.run, number: groups.length, edited: true } };
}

function move(data: Data, images: number[], to: number): Data {
  const group = [...data.images.group];
  const size = new Map<number, number>();
  for (const image of images) {
    size.set(group[image], (size.get(group[image]) ?? 0) - 1);
    size.set(to, (size.get(to) ?? 0) + 1);
    group[image] = to;
  }
  const groups = data.groups.map((g) => (size.has(g.number) ? { ...g, size: g.size + (size.get(g.number) ?? 0) } : g));
  return { ...data, groups, images: { ...data.images, group }, run: { ...data.run, edited: true } };
}

/** The corrections as lines for a shell. */
export function commands(data: Data): string {
  const lines: string[] = [];
  const moves = (images: number[], group: number) => {
    for (let at = 0; at < images.length; at += 100) {
      lines.push(`scan edit move ${group} ${words(images.slice(at, at + 100).map((image) => data.images.source[image]))}`);
    }
  };
  for (const body of corrections.value) {
    if (body.action === "name") lines.push(`scan edit name ${body.group} ${words([body.name])}`);
    else if (body.action === "merge") lines.push(`scan edit merge ${body.groups.join(" ")}`);
    else if (body.action === "split") lines.push(`scan edit split ${body.group} --parts ${body.parts}`);
    else if (body.action === "ignore") lines.push(`scan edit ignore ${body.group}${body.ignored ? "" : " --no"}`);
    else if (body.action === "suggested") lines.push("scan edit suggested");
    else if (body.action === "move") moves(body.images, body.group);
    else if (body.action === "answer" && body.group !== null && base?.images.group[body.image] !== body.group) {
      moves([body.image], body.group);
    }
  }
  return lines.join("\n") + (lines.length ? "\n" : "");
}

/** Words of a command; after -- a leading dash is no option. */
function words(texts: string[]): string {
  return (texts.some((text) => text.startsWith("-")) ? "-- " : "") + texts.map(quoted).join(" ");
}

/** One word of a POSIX shell; control characters, which a terminal would obey when pasted, as $'…' escapes. */
function quoted(text: string): string {
  if (/[\x00-\x1f\x7f-\x9f]/.test(text)) {
    const escaped = text.replace(/[\\']/g, "\\$&").replace(/[\x00-\x1f\x7f]/g, hex).replace(/[\x80-\x9f]/g, high);
    return `$'${escaped}'`;
  }
  return /^[\w./@%+=:,][\w./@%+=:,-]*$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
const hex = (c: string) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`;
const high = (c: string) => `\\u00${c.charCodeAt(0).toString(16)}`;
