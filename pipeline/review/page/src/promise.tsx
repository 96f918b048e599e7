// Thirty sure images drawn at random, right or wrong by one key each: how far "sure" can be trusted.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { data, edit, photo } from "./data";
import { byNumber, titleOf } from "./derive";
import { Row } from "./pictures";
import { go } from "./route";
import { Shot } from "./shot";
import { promiseText } from "./top";
import { asked, typing, viewer } from "./viewer";

const DRAWN = 30;

interface Round {
  images: number[];
  at: number;
}

const round = signal<Round | null>(null);
const key = () => `scan-check ${location.pathname} ${data.value!.project}`;

/** Without replacement, each sure image as likely as any other; those of earlier rounds are not asked again. */
function draw(before: number[]): Round {
  const gone = new Set(before);
  const sure: number[] = [];
  data.value!.images.state.forEach((state, image) => state === 0 && !gone.has(image) && sure.push(image));
  for (let i = 0; i < Math.min(DRAWN, sure.length); i++) {
    const other = i + Math.floor(Math.random() * (sure.length - i));
    [sure[i], sure[other]] = [sure[other], sure[i]];
  }
  return { images: sure.slice(0, DRAWN), at: 0 };
}

/** A reload goes on where one was; a browser that keeps nothing begins anew. */
function remember(next: Round): void {
  round.value = next;
  try {
    sessionStorage.setItem(key(), JSON.stringify(next));
  } catch { /* not kept */ }
}

function begun(): Round {
  try {
    const kept = JSON.parse(sessionStorage.getItem(key()) ?? "null") as Round | null;
    const { state } = data.value!.images;
    if (kept?.images?.length && kept.images.every((image) => state[image] !== undefined)) return kept;
  } catch { /* nothing kept */ }
  return draw([]);
}

async function judge(right: boolean): Promise<void> {
  const now = round.value!;
  const image = now.images[now.at];
  if (image === undefined) return;
  remember({ ...now, at: now.at + 1 });
  if (!(await edit({ action: "check", image, right }))) remember(now);
}

async function undo(): Promise<void> {
  const now = round.value!;
  if ((await edit({ action: "undo" })) && now.at > 0) remember({ ...now, at: now.at - 1 });
}

export function Promise30() {
  if (!round.value) round.value = begun();
  const { images, at } = round.value;
  const image = images[at];

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (typing(event) || asked.value || viewer.value || event.repeat) return;
      if (event.key === "y") void judge(true);
      else if (event.key === "n") void judge(false);
      else if (event.key === "z") void undo();
      else return;
      event.preventDefault();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);
  useEffect(() => {
    const source = images[at + 1] === undefined ? undefined : photo(images[at + 1]);
    if (source) new Image().src = source;
  }, [at]);

  if (image === undefined) return <Done images={images} />;
  const group = data.value!.images.group[image];
  return (
    <div class="question">
      <p class="progress">
        <progress max={images.length} value={at} aria-label="Looked at" />
        <span role="status">{at + 1} of {images.length} sure images, drawn at random</span>
        <button type="button" class="link" onClick={() => go({ promise: false })}>stop</button>
      </p>
      <Shot image={image} />
      <div class="answers">
        <h2>Is this right in <bdi>{titleOf(group)}</bdi>?</h2>
        <div class="line">
          <button type="button" class="main" onClick={() => judge(true)}><kbd>y</kbd> right</button>
          <button type="button" class="main wrong" onClick={() => judge(false)}><kbd>n</kbd> wrong</button>
          <button type="button" onClick={undo}><kbd>z</kbd> undo</button>
        </div>
        <small>Typical of this group:</small>
        <Row images={(byNumber.value.get(group)?.prototypes ?? []).slice(0, 6)} label="Typical of this group" />
      </div>
    </div>
  );
}

function Done({ images }: { images: number[] }) {
  return (
    <div class="empty">
      <p class="result">{promiseText(data.value!) || (images.length ? "Looked at all of them." : "No image is sure.")}</p>
      <div class="line">
        {images.length > 0 && <button type="button" onClick={undo}><kbd>z</kbd> undo</button>}
        {images.length >= DRAWN && <button type="button" onClick={() => remember(draw(images))}>Look at {DRAWN} more</button>}
        <button type="button" class="main" onClick={() => { round.value = null; go({ tab: "groups", promise: false }); }}>
          Back to the groups
        </button>
      </div>
    </div>
  );
}
