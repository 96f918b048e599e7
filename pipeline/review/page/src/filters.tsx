// The bar above the grid and the map: what is shown, and what happens with what is selected.
import { useState } from "preact/hooks";
import { data, edit } from "./data";
import { byNumber, counted, dates, fileOf, folders, groups, number, shown, splits, titleOf } from "./derive";
import { clearFilters, FILTERS, go, route } from "./route";
import { clearSelection, select, selection } from "./selection";
import { STATES } from "./types";

const MOST_FOLDERS = 2000; // in the list; the field for text finds the others

export function Filters({ order }: { order: boolean }) {
  const at = route.value;
  const active = FILTERS.filter((key) => at[key] !== "").length;
  const [wide] = useState(() => window.matchMedia("(min-width: 700px)").matches);
  const [first, last] = dates.value;
  const choose = (key: keyof typeof at) => (event: Event) => go({ [key]: (event.target as HTMLSelectElement).value });
  return (
    <div class="filters">
      <div class="line">
        <input
          type="search" dir="auto" placeholder="name, folder, group…" aria-label="Text in the name, folder or group"
          value={at.text} onInput={choose("text")}
        />
        <strong class="count" aria-live="polite">
          {shown.value.length === data.value!.images.source.length
            ? counted(shown.value.length, "image")
            : `${number(shown.value.length)} of ${counted(data.value!.images.source.length, "image")}`}
        </strong>
        {active > 0 && <button type="button" onClick={clearFilters}>Show all</button>}
      </div>
      {at.like && (
        <p class="like">
          Most like <bdi>{fileOf(data.value!.images.source[Number(at.like)] ?? "")}</bdi>, nearest first{" "}
          <button type="button" onClick={() => go({ like: "" })}>Stop</button>
        </p>
      )}
      <details open={wide || undefined}>
        <summary>Filters{active ? ` (${active})` : ""}</summary>
        <div class="line">
          <label>Group{" "}
            <select value={at.group} onChange={choose("group")}>
              <option value="">all</option>
              {groups.value.map((group) => <option value={String(group.number)}>{titleOf(group.number)} ({group.size})</option>)}
            </select>
          </label>
          <label>Sureness{" "}
            <select value={at.state} onChange={choose("state")}>
              <option value="">all</option>
              {STATES.map((state, i) => <option value={String(i)}>{state}</option>)}
            </select>
          </label>
          {folders.value.length > 1 && (
            <label>Folder{" "}
              <select value={at.folder} onChange={choose("folder")}>
                <option value="">all</option>
                {folders.value.slice(0, MOST_FOLDERS).map(([folder, n]) => (
                  <option value={folder || "."}>{folder || "(none)"} ({n})</option>
                ))}
              </select>
            </label>
          )}
          {splits.value.length > 1 && (
            <label>Part{" "}
              <select value={at.split} onChange={choose("split")}>
                <option value="">all</option>
                {splits.value.map((split) => <option value={split}>{split}</option>)}
              </select>
            </label>
          )}
          {first && (
            <>
              <label>From <input type="date" min={first} max={last} value={at.from} onChange={choose("from")} /></label>
              <label>to <input type="date" min={first} max={last} value={at.to} onChange={choose("to")} /></label>
            </>
          )}
          {order && !at.like && (
            <label>Order{" "}
              <select value={at.order} onChange={choose("order")}>
                <option value="">as they came</option>
                <option value="unsure">least sure first</option>
                <option value="sure">surest first</option>
                <option value="group">by group</option>
                {first && <option value="new">newest first</option>}
              </select>
            </label>
          )}
        </div>
      </details>
    </div>
  );
}

/** A list of all groups to choose one from. */
export function GroupSelect({ value, choose, label, but }: {
  value: string; choose: (group: string) => void; label: string; but?: number;
}) {
  return (
    <select value={value} aria-label={label} onChange={(event) => choose((event.target as HTMLSelectElement).value)}>
      <option value="">group…</option>
      {[...byNumber.value.keys()].filter((n) => n !== but).sort((a, b) => a - b)
        .map((n) => <option value={String(n)}>{titleOf(n)}</option>)}
    </select>
  );
}

export function SelectionBar({ hint }: { hint: string }) {
  const [to, setTo] = useState("");
  const { set } = selection.value;
  const move = async () => {
    if (to && (await edit({ action: "move", images: [...set].sort((a, b) => a - b), group: Number(to) }))) clearSelection();
  };
  const all = shown.value;
  const seen = set.size ? all.reduce((sum, image) => sum + (set.has(image) ? 1 : 0), 0) : 0;
  return (
    <div class={`selection${set.size ? " some" : ""}`} role="toolbar" aria-label="Selected images">
      <span aria-live="polite">{set.size ? <><strong>{number(set.size)} selected</strong>{seen < set.size && `, ${number(set.size - seen)} not shown`}</> : hint}</span>
      <button type="button" onClick={() => select(all)} disabled={!all.length}>Select all {number(all.length)}</button>
      {set.size > 0 && (
        <>
          <button type="button" onClick={clearSelection}>None</button>
          <span class="move">
            <GroupSelect value={to} choose={setTo} label="Group to move them to" />
            <button type="button" class="main" disabled={!to} onClick={move}>Move</button>
          </span>
        </>
      )}
    </div>
  );
}
