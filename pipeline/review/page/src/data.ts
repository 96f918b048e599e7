// The one copy of data.json, and the only place that talks to the server.
import { signal } from "@preact/signals";
import { editLocally, restored } from "./local";
import type { Data, Edit } from "./types";

export const data = signal<Data | null>(null);
export const failure = signal(""); // why nothing can be shown
export const said = signal<{ text: string; error: boolean; at: number }>({ text: "", error: false, at: 0 });
export const waiting = signal(0); // edits that the server has not yet answered

/** The first path segment is the token; edits send it back as a header, which another site's form cannot. */
const token = () => location.pathname.split("/")[1] ?? "";

export function say(text: string, error = false): void {
  said.value = { text, error, at: Date.now() };
}

export async function load(): Promise<void> {
  const embedded = document.getElementById("data");
  try {
    if (embedded) data.value = restored(JSON.parse(embedded.textContent ?? "") as Data);
    else {
      const answer = await fetch("data.json", { cache: "no-store" });
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      data.value = (await answer.json()) as Data;
    }
    failure.value = "";
  } catch (error) {
    if (data.value) say(unreachable(error), true);
    else failure.value = unreachable(error);
  }
}

const unreachable = (error: unknown): string =>
  error instanceof TypeError ? "no answer: is scan review still running?" : String((error as Error).message ?? error);

interface Reply {
  version?: number;
  said?: string;
  data?: Partial<Data>;
  parts?: number[][];
  error?: string;
}

async function post(body: object): Promise<Reply> {
  const answer = await fetch("edit", {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Scan-Token": token() },
    body: JSON.stringify(body),
  });
  const reply = (await answer.json().catch(() => ({}))) as Reply;
  if (!answer.ok) throw new Error(reply.error || `the server answered ${answer.status}`);
  return reply;
}

// Edits go one after another: an answer's version says whether somebody else has edited in between.
let last: Promise<unknown> = Promise.resolve();

/** Sends one edit and takes over what changed; false, and the reason is shown, if it was refused. */
export function edit(body: Edit): Promise<boolean> {
  const run = async (): Promise<boolean> => {
    const before = data.value;
    if (!before) return false;
    try {
      if (before.mode === "report") {
        const [next, text] = editLocally(before, body);
        data.value = next;
        say(text);
        return true;
      }
      const reply = await post(body);
      if ((reply.version ?? 0) > before.version + 1) await load();
      else data.value = merged(before, reply);
      say(reply.said ?? "saved");
      return true;
    } catch (error) {
      say(unreachable(error), true);
      return false;
    }
  };
  waiting.value += 1;
  const done = last.then(run).finally(() => (waiting.value -= 1));
  last = done;
  return done;
}

/** What splitting would give; changes nothing. */
export async function previewSplit(group: number, parts: number): Promise<number[][]> {
  return (await post({ action: "split_preview", group, parts })).parts ?? [];
}

/** The columns of images come one by one, so an answer need not repeat 100,000 paths. */
function merged(before: Data, reply: Reply): Data {
  const changed = reply.data ?? {};
  const images = changed.images ? { ...before.images, ...changed.images } : before.images;
  return { ...before, ...changed, images, version: reply.version ?? before.version };
}

export const thumb = (image: number): string | undefined =>
  data.value?.mode === "report" ? data.value.thumbs?.[image] : `thumb/${image}`;

export const photo = (image: number): string | undefined =>
  data.value?.mode === "report" ? data.value.thumbs?.[image] : `photo/${image}`;

const MANY = 100; // images whose likes are remembered
const found = new Map<number, number[] | null>(); // null: the server has been asked
const answers = signal(0);

/** Images by how much they look like one, itself first; null in the single file, and until the server has answered. */
export function alike(image: number): number[] | null {
  answers.value; // whoever reads this is drawn again once there is an answer
  if (isReport()) return null;
  if (!found.has(image)) {
    if (found.size >= MANY) found.clear();
    found.set(image, null);
    void fetch(`like/${image}`)
      .then((answer) => (answer.ok ? answer.json() : null))
      .then((order: number[] | null) => {
        found.set(image, order);
        answers.value += 1;
      })
      .catch(() => undefined); // then the map says what is near
  }
  return found.get(image) ?? null;
}

export const isReport = (): boolean => data.value?.mode === "report";
