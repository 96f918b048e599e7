// Puts the page together: the top, three tabs, the dialogs, and what the last edit said.
import { render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Check } from "./check";
import { data, edit, failure, isReport, load, said } from "./data";
import { number } from "./derive";
import { Filters, SelectionBar } from "./filters";
import { Grid } from "./grid";
import { Groups } from "./groups";
import { CopyCorrections, Keys } from "./help";
import { ImageMap } from "./map";
import { Merge } from "./merge";
import { More } from "./more";
import { Odd } from "./odd";
import { Photo } from "./photo";
import { go, route, type Tab, type View } from "./route";
import { Split } from "./split";
import { Top } from "./top";
import { asked, typing, viewer } from "./viewer";

const TABS: [Tab, string][] = [["groups", "Groups"], ["check", "To check"], ["odd", "Copies & odd"]];
const VIEWS: [View, string][] = [["cards", "Cards"], ["images", "Images"], ["map", "Map"]];

function App() {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const field = (event.target as HTMLElement).closest?.("input, textarea, select");
      if (event.key === "z" && (event.ctrlKey || event.metaKey) && !field) {
        event.preventDefault();
        void edit({ action: "undo" });
      } else if (event.key === "?" && !typing(event)) asked.value = { kind: "keys" };
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);
  if (failure.value) {
    return <main class="failure"><p role="alert">{failure.value}</p><button type="button" onClick={load}>Try again</button></main>;
  }
  if (!data.value) return <main class="failure"><p role="status">loading…</p></main>;
  const { tab, view } = route.value;
  document.title = `${data.value.project}: ${data.value.verdict.word}`;
  return (
    <>
      <Top />
      <Tabs />
      <main><div id="panel" role="tabpanel" aria-labelledby={`tab-${tab}`} class={`${tab} ${view}`}>
        <Sample />
        {tab === "groups" && view === "cards" && <Groups />}
        {tab === "groups" && view === "images" && <><Filters order /><Grid /><SelectionBar hint="A picture's corner selects it" /></>}
        {tab === "groups" && view === "map" && <><Filters order={false} /><ImageMap /><SelectionBar hint="Draw around points to select them" /></>}
        {tab === "check" && <Check />}
        {tab === "odd" && <Odd />}
      </div></main>
      {!(tab === "groups" && view !== "cards") && <More />}
      <Dialogs />
      <Said />
    </>
  );
}

function Tabs() {
  const { tab, view } = route.value;
  const onKeyDown = (event: KeyboardEvent) => {
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? TABS.length - 1 : 0;
    if (!by) return;
    const [next] = TABS[(TABS.findIndex(([name]) => name === tab) + by) % TABS.length];
    go({ tab: next });
    document.getElementById(`tab-${next}`)?.focus();
  };
  const left = data.value!.questions.length;
  return (
    <nav class="tabs">
      <div role="tablist" aria-label="What to look at" onKeyDown={onKeyDown}>
        {TABS.map(([name, title]) => (
          <button type="button" role="tab" id={`tab-${name}`} aria-selected={tab === name} aria-controls="panel"
            tabIndex={tab === name ? 0 : -1} onClick={() => go({ tab: name, promise: false })}>
            {title}{name === "check" && left ? <small> {number(left)}</small> : null}
          </button>
        ))}
      </div>
      {tab === "groups" && (
        <div class="views" role="group" aria-label="Show as">
          {VIEWS.filter(([name]) => name !== "map" || data.value!.images.x.length).map(([name, title]) => (
            <button type="button" aria-pressed={view === name} onClick={() => go({ view: name })}>{title}</button>
          ))}
        </div>
      )}
    </nav>
  );
}

/** The single file holds some pictures only, and says so. */
function Sample() {
  if (!isReport()) return null;
  const { thumbs, images } = data.value!;
  const held = Object.keys(thumbs ?? {}).length;
  if (held >= images.source.length) return null;
  return (
    <p class="sample">
      This file holds {held ? `the pictures of ${number(held)} of ${number(images.source.length)} images` : "no pictures"};{" "}
      <code>scan review</code> shows all.
    </p>
  );
}

function Dialogs() {
  const close = () => (asked.value = null);
  const now = asked.value;
  return (
    <>
      {now?.kind === "merge" && <Merge number={now.group} close={close} />}
      {now?.kind === "split" && <Split number={now.group} close={close} />}
      {now?.kind === "keys" && <Keys close={close} />}
      {now?.kind === "copy" && <CopyCorrections close={close} />}
      {viewer.value && <Photo />}
    </>
  );
}

/** What the last edit did, or why it was refused; an error stays until it is read. */
function Said() {
  const { text, error, at } = said.value;
  const ref = useRef<HTMLDivElement>(null);
  // A popover that is shown anew lies above a dialog that is open.
  useEffect(() => {
    const box = ref.current!;
    if (box.matches(":popover-open")) box.hidePopover();
    if (text) box.showPopover();
  }, [text, at]);
  useEffect(() => {
    if (!text || error) return;
    const timer = setTimeout(() => said.value.at === at && (said.value = { ...said.value, text: "" }), 6000);
    return () => clearTimeout(timer);
  }, [at]);
  return (
    <div ref={ref} popover="manual" class={`said${error ? " error" : ""}`} role={error ? "alert" : "status"}>
      {text && <><span dir="auto">{text}</span><button type="button" class="quiet" aria-label="Dismiss"
        onClick={() => (said.value = { ...said.value, text: "" })}>✕</button></>}
    </div>
  );
}

import "./style.css";

void load();
render(<App />, document.getElementById("app")!);
