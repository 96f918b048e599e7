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

const at = signal(-1); // which of the drawn images is asked about; -1 is the first that nothing was said of
const drawn = signal<number[]>([]); // here, if the server has not drawn any

function images(): number[] {
  const { check } = data.value!;
  if (check) return check.images;
  if (!drawn.value.length) drawn.value = draw();
  return drawn.value;
}

/** Without replacement, each sure image as likely as any other. */
function draw(): number[] {
  const sure: number[] = [];
  data.value!.images.state.forEach((state, image) => state === 0 && sure.push(image));
  const count = Math.min(DRAWN, sure.length);
  for (let i = 0; i < count; i++) {
    const other = i + Math.floor(Math.random() * (sure.length - i));
    [sure[i], sure[other]] = [sure[other], sure[i]];
  }
  return sure.slice(0, count);
}

function place(): number {
  if (at.value >= 0) return at.value;
  const open = data.value!.check?.right.findIndex((right) => right === null) ?? 0;
  return open < 0 ? images().length : open;
}

async function judge(right: boolean): Promise<void> {
  const now = place();
  const image = images()[now];
  if (image === undefined) return;
  at.value = now + 1;
  if (!(await edit({ action: "check", image, right }))) at.value = now;
}

/** Back to the one before: what is said of it then replaces what was said. */
function back(): void {
  at.value = Math.max(0, place() - 1);
}

export function Promise30() {
  const all = images();
  const now = place();
  const image = all[now];

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (typing(event) || asked.value || viewer.value || event.repeat) return;
      if (event.key === "y") void judge(true);
      else if (event.key === "n") void judge(false);
      else if (event.key === "z") back();
      else return;
      event.preventDefault();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);
  useEffect(() => {
    const source = all[now + 1] === undefined ? undefined : photo(all[now + 1]);
    if (source) new Image().src = source;
  }, [now]);
  useEffect(() => () => void (at.value = -1), []);

  if (image === undefined) return <Done count={all.length} />;
  const group = data.value!.images.group[image];
  return (
    <div class="question">
      <p class="progress">
        <progress max={all.length} value={now} aria-label="Looked at" />
        <span role="status">{now + 1} of {all.length} sure images, drawn at random</span>
        <button type="button" class="link" onClick={() => go({ promise: false })}>stop</button>
      </p>
      <Shot image={image} />
      <div class="answers">
        <h2>Is this right in <bdi>{titleOf(group)}</bdi>?</h2>
        <div class="line">
          <button type="button" class="main" onClick={() => judge(true)}><kbd>y</kbd> right</button>
          <button type="button" class="main wrong" onClick={() => judge(false)}><kbd>n</kbd> wrong</button>
          <button type="button" disabled={now === 0} onClick={back}><kbd>z</kbd> back</button>
        </div>
        <small>Typical of this group:</small>
        <Row images={(byNumber.value.get(group)?.prototypes ?? []).slice(0, 6)} label="Typical of this group" />
      </div>
    </div>
  );
}

function Done({ count }: { count: number }) {
  return (
    <div class="empty">
      <p class="result">{promiseText(data.value!) || (count ? "Looked at all of them." : "No image is sure.")}</p>
      <p>It holds for these groups: when you move, merge or split, it is void, and another look takes a minute.</p>
      <div class="line">
        {count > 0 && <button type="button" onClick={back}><kbd>z</kbd> back</button>}
        <button type="button" class="main" onClick={() => go({ tab: "groups", promise: false })}>Back to the groups</button>
      </div>
    </div>
  );
}
