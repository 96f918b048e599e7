// Above the fold: what it is, how far to trust it, and what is to be done.
import { useState } from "preact/hooks";
import { data, edit, isReport, waiting } from "./data";
import { counted, number, percent } from "./derive";
import { corrections } from "./local";
import { go, route, showImages } from "./route";
import { STATES, type Data } from "./types";
import { asked } from "./viewer";

/** All of it over the cards; elsewhere one line, because there the work needs the room. */
export function Top() {
  const { project, run, verdict } = data.value!;
  const { tab, view } = route.value;
  const whole = tab === "groups" && view === "cards";
  return (
    <header class={whole ? "top" : "top compact"}>
      <div class="title">
        <h1><bdi>{project}</bdi></h1>
        <p>
          {counted(run.images, "image")} · {counted(run.number, "group")}
          {run.given ? "" : run.low < run.high ? ` (${run.low} to ${run.high} are plausible)` : ""}
          {run.edited ? " · corrected" : ""}
        </p>
        {!whole && <span class={`badge ${verdict.word}`} title={holding(data.value!)}>{verdict.word}</span>}
        <Actions />
      </div>
      {whole && (
        <section class={`verdict ${verdict.word}`} aria-label="Verdict">
          <p class="headline"><strong class="word">{verdict.word}</strong> <span>{holding(data.value!)}</span></p>
          <Reasons />
        </section>
      )}
      {tab !== "check" && <Chips />}
      {(whole || (tab === "check" && !route.value.promise)) && <PromiseLine />}
    </header>
  );
}

function Actions() {
  const report = isReport();
  const n = corrections.value.length;
  return (
    <div class="actions">
      {report
        ? <button type="button" class={n ? "main" : ""} disabled={!n} onClick={() => (asked.value = { kind: "copy" })}>
            Copy corrections{n ? ` (${n})` : ""}
          </button>
        : <span class="saved" role="status">{waiting.value ? "saving…" : "all is saved"}</span>}
      <button type="button" onClick={() => edit({ action: "undo" })} disabled={report && !n} title="Ctrl+Z">Undo</button>
      <button type="button" class="quiet pointer" onClick={() => (asked.value = { kind: "keys" })}>Keys</button>
    </div>
  );
}

/** The verdict in a sentence, counted from the groups. */
function holding({ groups }: Data): string {
  const taken = groups.filter((group) => !group.ignored);
  const count = (word: string) => taken.filter((group) => group.word === word).length;
  const [strong, weak, none] = [count("strong"), count("weak"), count("none")];
  if (none && !strong && !weak) return "No group is better than chance.";
  const say = (n: number, one: string, many: string) => `${n} ${n === 1 ? one : many}`;
  const parts = [
    strong ? say(strong, "group holds together", "groups hold together") : "no group clearly holds together",
    weak && say(weak, "looks mixed", "look mixed"),
    none && say(none, "is no better than chance", "are no better than chance"),
  ];
  const text = parts.filter(Boolean).join(", ");
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function Reasons() {
  const { verdict } = data.value!;
  // On a phone the lists would push the groups off the first screen.
  const [open] = useState(() => window.matchMedia("(min-width: 700px)").matches);
  return (
    <div class="reasons">
      {verdict.why.length > 0 && (
        <details open={open}><summary>Why?</summary><ul>{verdict.why.map((line) => <li>{line}</li>)}</ul></details>
      )}
      {verdict.try.length > 0 && (
        <details open={open}><summary>What to try?</summary><ul>{verdict.try.map((line) => <li>{line}</li>)}</ul></details>
      )}
    </div>
  );
}

/** The tab is drawn after this, so its section is there a frame later. */
function toSection(id: string): void {
  go({ tab: "odd" });
  requestAnimationFrame(() => requestAnimationFrame(() => document.getElementById(id)?.scrollIntoView()));
}

/** Where a count leads: the states to the images, the others to what they count. */
function Chips() {
  const { counts } = data.value!;
  const at = route.value;
  const inImages = at.tab === "groups" && at.view !== "cards";
  const label = (name: string, n: number) =>
    name === "fits nowhere" ? `${number(n)} fit${n === 1 ? "s" : ""} nowhere` : `${number(n)} ${name}`;
  return (
    <div class="chips" role="group" aria-label="Counts; each shows its images">
      {Object.entries(counts).map(([name, n]) => {
        const state = STATES.indexOf(name as (typeof STATES)[number]);
        if (state < 0) {
          return <button type="button" class="chip" disabled={!n} onClick={() => toSection(name === "copies" ? "copies" : "rejected")}>{label(name, n)}</button>;
        }
        const on = inImages && at.state === String(state);
        return (
          <button type="button" class={`chip state${state}`} aria-pressed={on} disabled={!n && !on}
            onClick={() => (inImages ? go({ state: on ? "" : String(state) }) : showImages({ state: String(state) }))}>
            {label(name, n)}
          </button>
        );
      })}
    </div>
  );
}

const RANGE = "In 95 of 100 such checks this range holds the true share";

export function promiseText(data: Data): string {
  const { promise } = data;
  if (!promise || !promise.checked || promise.void) return "";
  const [low, high] = [Math.round(100 * promise.low), Math.round(100 * promise.high)];
  return `sure images: ${percent(promise.right / promise.checked)} right (${promise.checked} checked, 95 %: ${low} to ${high})`;
}

function PromiseLine() {
  const { promise, counts } = data.value!;
  const text = promiseText(data.value!);
  const many = Math.min(30, counts["sure"] ?? 0);
  const start = (words: string) =>
    !isReport() && many > 0 && (
      <button type="button" class="link" onClick={() => go({ tab: "check", promise: true })}>{words}</button>
    );
  return (
    <p class="promise">
      {text
        ? <><span title={RANGE}>Checked by you: <strong>{text}</strong></span> {start("look at more")}</>
        : <>
            {isReport()
              ? "Nobody has checked yet how many of the sure images are right; scan review asks about 30 of them."
              : <>
                  Checked by you: {promise?.void ? "not since groups changed" : "not yet"}.{" "}
                  {start(`→ Look at ${many} sure ones (1 minute)`)}
                </>}
          </>}
    </p>
  );
}
