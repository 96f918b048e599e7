// The groups as cards, weak ones first, because that is the work.
import { Card } from "./card";
import { data, edit } from "./data";
import { counted, groups, nameOf, titleOf } from "./derive";
import { go, route } from "./route";
import type { Group } from "./types";

const HEADINGS: { title: (n: number) => string; has: (group: Group) => boolean }[] = [
  { title: (n) => `${counted(n, "weak group")}: look here first`, has: (g) => !g.ignored && g.word === "weak" },
  { title: (n) => `${counted(n, "group")} no better than chance`, has: (g) => !g.ignored && g.word === "none" },
  { title: (n) => counted(n, "strong group"), has: (g) => !g.ignored && g.word === "strong" },
  { title: (n) => `${counted(n, "group")} left out`, has: (g) => g.ignored },
];

export function Groups() {
  const text = route.value.find;
  const wanted = text.trim().toLowerCase();
  const list = groups.value.filter((group) => {
    const words = `${group.number} ${nameOf(group)} ${group.classes.map(([name]) => name).join(" ")}`.toLowerCase();
    return !wanted || words.includes(wanted);
  });
  const suggestions = data.value!.groups.filter((group) => !group.name && group.suggested && !group.ignored);
  return (
    <>
      <div class="line tools">
        {groups.value.length > 8 && (
          <input type="search" dir="auto" placeholder="find a group" aria-label="Find a group by number or name"
            value={text} onInput={(event) => go({ find: (event.target as HTMLInputElement).value })} />
        )}
        {suggestions.length > 0 && (
          <button type="button" onClick={() => edit({ action: "suggested" })}
            title={suggestions.map((group) => `${group.number}: ${group.suggested}`).join("\n")}>
            {suggestions.length === 1 ? "Take the suggested name" : `Take all ${suggestions.length} suggested names`}
          </button>
        )}
        <Jump list={list} />
      </div>
      {HEADINGS.map(({ title, has }) => {
        const some = list.filter(has);
        return some.length > 0 && (
          <section>
            <h2 class="heading">{title(some.length)}</h2>
            {some.map((group) => <Card key={group.number} group={group} />)}
          </section>
        );
      })}
      {!list.length && <p class="empty">No group has “{text}” in its name.</p>}
    </>
  );
}

/** With many groups, a way to one of them without scrolling past all. */
function Jump({ list }: { list: Group[] }) {
  if (list.length < 20) return null;
  return (
    <select class="jump" aria-label="Jump to a group" value=""
      onChange={(event) => {
        const select = event.target as HTMLSelectElement;
        document.getElementById(`group-${select.value}`)?.scrollIntoView({ block: "start" });
        document.getElementById(`name-${select.value}`)?.focus({ preventScroll: true });
        select.value = "";
      }}>
      <option value="">jump to…</option>
      {[...list].sort((a, b) => a.number - b.number).map((g) => <option value={String(g.number)}>{titleOf(g.number)}</option>)}
    </select>
  );
}
