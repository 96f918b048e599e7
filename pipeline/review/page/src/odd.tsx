// Copies and odd ones: near copies side by side, what is unlike the rest, dark, blurred, and what could not be read.
import { useState } from "preact/hooks";
import { data } from "./data";
import { counted, fileOf, number, titleOf } from "./derive";
import { Near, Picture } from "./pictures";

const PAGE = 60; // how many more are shown at a time

export function Odd() {
  const { copies, odd, rejected } = data.value!;
  const nothing = !copies.length && !rejected.length && !Object.values(odd).some((images) => images.length);
  return (
    <div class="odd">
      {nothing && <p class="empty">No copies, nothing odd, and every file could be read.</p>}
      <Copies />
      <Tiles title="Outliers" text="unlike every other image" images={odd.outliers} />
      <Tiles title="Dark" text="hardly anything to see" images={odd.dark} />
      <Tiles title="Blurred" text="no sharp edges" images={odd.blurred} />
      <Rejected />
    </div>
  );
}

function Copies() {
  const { copies, images } = data.value!;
  const [shown, setShown] = useState(PAGE);
  if (!copies.length) return null;
  return (
    <section id="copies">
      <h2 class="heading">{counted(copies.length, "set")} of near copies</h2>
      <div class="copies">
        {copies.slice(0, shown).map((set) => {
          const [first] = set;
          const apart = set.some((image) => images.group[image] !== images.group[first]);
          return (
            <Near class={`copy ${set.length > 2 ? "many" : ""}`} key={first}>
              {() => (
                <>
                  {set.map((image) => <Picture key={image} image={image} list={set} note={fileOf(images.source[image])} />)}
                  {apart && <p class="apart">in different groups: {[...new Set(set.map((i) => titleOf(images.group[i])))].join(", ")}</p>}
                </>
              )}
            </Near>
          );
        })}
      </div>
      <More all={copies.length} shown={shown} more={() => setShown(shown + PAGE)} />
    </section>
  );
}

function Tiles({ title, text, images }: { title: string; text: string; images: number[] }) {
  const [shown, setShown] = useState(PAGE);
  if (!images.length) return null;
  const pages = Array.from({ length: Math.ceil(Math.min(shown, images.length) / 12) }, (_, i) => images.slice(12 * i, 12 * i + 12));
  return (
    <section>
      <h2 class="heading">{title} <small>{number(images.length)}; {text}</small></h2>
      {pages.map((page) => (
        <Near class={`tiles ${page.length > 6 ? "two" : ""}`} key={page[0]}>
          {() => page.map((image) => <Picture key={image} image={image} list={images} />)}
        </Near>
      ))}
      <More all={images.length} shown={shown} more={() => setShown(shown + PAGE)} />
    </section>
  );
}

function Rejected() {
  const { rejected } = data.value!;
  const [shown, setShown] = useState(PAGE);
  if (!rejected.length) return null;
  return (
    <section id="rejected">
      <h2 class="heading">{counted(rejected.length, "file")} left out</h2>
      <table class="rejected">
        <thead><tr><th scope="col">file</th><th scope="col">what happened</th><th scope="col">why</th></tr></thead>
        <tbody>
          {rejected.slice(0, shown).map(({ source, kind, reason }) => (
            <tr><td dir="auto">{source}</td><td>{kind}</td><td dir="auto">{reason}</td></tr>
          ))}
        </tbody>
      </table>
      <More all={rejected.length} shown={shown} more={() => setShown(shown + PAGE)} />
    </section>
  );
}

function More({ all, shown, more }: { all: number; shown: number; more: () => void }) {
  return shown < all ? <button type="button" onClick={more}>Show {Math.min(PAGE, all - shown)} more of {number(all)}</button> : null;
}
