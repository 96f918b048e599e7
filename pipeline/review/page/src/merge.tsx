// Merge: which groups become one; similar ones first, with pictures, because a number says nothing.
import { useState } from "preact/hooks";
import { edit } from "./data";
import { byNumber, groups, nameOf, percent, titleOf } from "./derive";
import { Dialog } from "./dialog";
import { Near, Thumb } from "./pictures";
import type { Group } from "./types";

export function Merge({ number, close }: { number: number; close: () => void }) {
  const group = byNumber.value.get(number);
  const [chosen, setChosen] = useState<number[]>([]);
  const [text, setText] = useState("");
  if (!group) return null;
  const similar = new Map(group.similar.map((one) => [one.group, one.similarity]));
  const others = groups.value
    .filter((other) => other.number !== number && `${other.number} ${nameOf(other)}`.toLowerCase().includes(text.toLowerCase()))
    .sort((a, b) => (similar.get(b.number) ?? -1) - (similar.get(a.number) ?? -1) || a.number - b.number);
  const toggle = (other: number) =>
    setChosen((old) => (old.includes(other) ? old.filter((n) => n !== other) : [...old, other]));
  const merge = async (event: Event) => {
    event.preventDefault();
    if (chosen.length && await edit({ action: "merge", groups: [number, ...chosen] })) close();
  };
  return (
    <Dialog title={`Merge ${titleOf(number)} with…`} close={close} class="wide">
      <div class="strip own"><Pictures group={group} /></div>
      {groups.value.length > 8 && (
        <input type="search" dir="auto" placeholder="find a group" aria-label="Find a group" value={text}
          onInput={(event) => setText((event.target as HTMLInputElement).value)} />
      )}
      <ul class="choices">
        {others.map((other, i) => (
          <li key={other.number}>
            <label class="strip">
              <input type="checkbox" form="merge" autofocus={i === 0} checked={chosen.includes(other.number)} onChange={() => toggle(other.number)} />
              <span class="what">
                <bdi>{titleOf(other.number)}</bdi>
                <small>{other.size}{similar.has(other.number) ? ` · ${percent(similar.get(other.number)!)} alike` : ""}</small>
              </span>
              <Pictures group={other} />
            </label>
          </li>
        ))}
      </ul>
      <form class="line end" id="merge" onSubmit={merge}>
        <span>Undo takes it apart again.</span>
        <button type="button" onClick={close}>Cancel</button>
        <button type="submit" class="main" disabled={!chosen.length}>
          Merge{chosen.length ? ` ${chosen.join(", ")} into ${number}` : ""}
        </button>
      </form>
    </Dialog>
  );
}

function Pictures({ group }: { group: Group }) {
  return <Near class="few">{() => group.prototypes.slice(0, 6).map((image) => <Thumb key={image} image={image} />)}</Near>;
}
