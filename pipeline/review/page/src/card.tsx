// One group: its name, what is typical and what is least sure of it, what it is like, and what can be done.
import { useRef, useState } from "preact/hooks";
import { edit } from "./data";
import { counted, percent, titleOf } from "./derive";
import { Near, Row } from "./pictures";
import { showImages } from "./route";
import { STATES, type Group } from "./types";
import { asked } from "./viewer";

const WORDS = { strong: "holds together", weak: "looks mixed", none: "no better than chance" };

export function Card({ group }: { group: Group }) {
  const [random, setRandom] = useState(0); // 0 is the least sure; 1 and 2 are four at random each
  const edge = random ? group.random.slice(4 * random - 4, 4 * random) : group.least_sure.slice(0, 4);
  return (
    <article id={`group-${group.number}`} class={`card ${group.word}${group.ignored ? " ignored" : ""}`}
      aria-label={`Group ${titleOf(group.number)}`}>
      <header>
        <span class="number" aria-hidden="true">{group.number}</span>
        <Name group={group} />
        <span class={`badge ${group.word}`} title={WORDS[group.word]}>{group.word}</span>
        <Sizes group={group} />
      </header>
      <div class="samples">
        <figure>
          <figcaption>most typical</figcaption>
          <Near class="place eight">{() => <Row images={group.prototypes} label={`Typical of group ${group.number}`} />}</Near>
        </figure>
        <figure>
          <figcaption>
            <button type="button" class="toggle" aria-pressed={!random} onClick={() => setRandom(0)}>least sure</button>
            <button type="button" class="toggle" aria-pressed={random > 0}
              onClick={() => setRandom(random === 1 && group.random.length > 4 ? 2 : 1)}>random</button>
          </figcaption>
          <Near class="place four">
            {() => <Row images={edge} label={`${random ? "At random" : "Least sure"} of group ${group.number}`} />}
          </Near>
        </figure>
      </div>
      <footer>
        {group.classes.length > 0 && (
          <span class="classes">
            classes: {group.classes.map(([name, share], i) => <>{i > 0 && ", "}<span><bdi><b>{name}</b></bdi> {percent(share)}</span></>)}
          </span>
        )}
        {group.similar.length > 0 && (
          <span class="like">
            like:{" "}
            {group.similar.map(({ group: other, similarity }) => (
              <button type="button" class="link" title={`similarity ${similarity.toFixed(2)}`}
                onClick={() => document.getElementById(`group-${other}`)?.scrollIntoView({ block: "center" })}>
                <bdi>{titleOf(other)}</bdi>
              </button>
            ))}
          </span>
        )}
        <span class="do">
          <button type="button" onClick={() => showImages({ group: String(group.number) })}>All {counted(group.size, "image")}</button>
          <button type="button" onClick={() => (asked.value = { kind: "merge", group: group.number })}>Merge…</button>
          {group.can_split && (
            <button type="button" onClick={() => (asked.value = { kind: "split", group: group.number })}>Split…</button>
          )}
          <button type="button" class="quiet" onClick={() => edit({ action: "ignore", group: group.number, ignored: !group.ignored })}>
            {group.ignored ? "Take in again" : "Leave out"}
          </button>
        </span>
      </footer>
    </article>
  );
}

/** How many, and how many of them are sure: as a bar, and as words for those who do not see it. */
function Sizes({ group }: { group: Group }) {
  const parts = STATES.map((state) => group.states[state] ?? 0);
  const words = STATES.map((state, i) => `${parts[i]} ${state}`).join(", ");
  return (
    <span class="sizes" title={words}>
      {counted(group.size, "image")}
      <span class="bar" role="img" aria-label={words}>
        {parts.map((n, i) => n > 0 && <span class={`state${i}`} style={{ flexGrow: String(n) }} />)}
      </span>
    </span>
  );
}

/** Enter takes what is typed, or the suggestion if nothing is, and goes to the next name; Esc takes it back. */
function Name({ group }: { group: Group }) {
  const ref = useRef<HTMLInputElement>(null);
  const sent = useRef(group.name); // leaving the field after Enter must not send the name again
  if (ref.current && document.activeElement !== ref.current) sent.current = group.name;
  const save = async (name: string) => {
    if (name === group.name || name === sent.current) return;
    sent.current = name;
    if (await edit({ action: "name", group: group.number, name })) return;
    sent.current = group.name;
    if (ref.current) ref.current.value = group.name;
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const input = ref.current!;
    if (event.key === "Enter") {
      const typed = input.value.trim();
      void save(typed || (group.name ? "" : group.suggested));
      toNext(input, 1);
    } else if (event.key === "Escape") {
      input.value = group.name;
      input.blur();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") toNext(input, event.key === "ArrowDown" ? 1 : -1);
    else return;
    event.preventDefault();
  };
  return (
    <span class="name">
      <input
        ref={ref} id={`name-${group.number}`} key={group.name} dir="auto" defaultValue={group.name}
        placeholder={group.suggested ? `${group.suggested}?` : "name it"} maxLength={200} autocomplete="off" spellcheck={false}
        aria-label={`Name of group ${group.number}`} onKeyDown={onKeyDown}
        onBlur={() => ref.current?.value.trim() && save(ref.current.value.trim())}
      />
      {!group.name && group.suggested && (
        <button type="button" class="accept" title="Enter in the empty field does the same"
          onClick={() => save(group.suggested)}>
          take “<bdi>{group.suggested}</bdi>”
        </button>
      )}
    </span>
  );
}

function toNext(input: HTMLInputElement, by: number): void {
  const names = [...document.querySelectorAll<HTMLInputElement>(".card .name input")];
  const next = names[names.indexOf(input) + by];
  if (!next) return input.blur();
  next.focus();
  next.select();
  next.closest(".card")?.scrollIntoView({ block: "nearest" });
}
