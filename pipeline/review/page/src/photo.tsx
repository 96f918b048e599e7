// One photo, large: what it is, where it was put and why, and where it belongs.
import { useEffect, useState } from "preact/hooks";
import { data, edit, photo } from "./data";
import { fileOf, folderOf, members, nearest, percent, titleOf } from "./derive";
import { Dialog } from "./dialog";
import { GroupSelect } from "./filters";
import { Thumb } from "./pictures";
import { showImages } from "./route";
import { STATES } from "./types";
import { openPhoto, step, viewer } from "./viewer";

export function Photo() {
  const { list, at } = viewer.value!;
  const image = list[at];
  const images = data.value!.images;
  const [chosen, setChosen] = useState({ image: -1, to: "" });
  const to = chosen.image === image ? chosen.to : "";
  const setTo = (value: string) => setChosen({ image, to: value });
  const close = () => (viewer.value = null);

  useEffect(() => {
    // The neighbors come while this one is looked at.
    for (const near of [list[at + 1], list[at - 1]]) {
      const source = near === undefined ? undefined : photo(near);
      if (source) new Image().src = source;
    }
  }, [image]);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if ((event.target as HTMLElement).closest?.("select")) return;
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        step(event.key === "ArrowRight" ? 1 : -1);
        event.preventDefault();
      }
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);

  const source = images.source[image];
  const group = images.group[image];
  const other = images.runner_up[image];
  const facts: [string, string][] = [
    ["folder", folderOf(source) || "(none)"],
    ["group", `${titleOf(group)}, ${STATES[images.state[image]]} (${percent(images.probability[image])})`],
    ...(other ? [["runner-up", titleOf(other)] as [string, string]] : []),
    ...(images.label[image] ? [["class", images.label[image]] as [string, string]] : []),
    ...(images.date[image] ? [["date", images.date[image]] as [string, string]] : []),
    ...(images.split[image] ? [["part", images.split[image]] as [string, string]] : []),
    ...(images.answered[image] ? [["", "answered by you"] as [string, string]] : []),
  ];
  return (
    <Dialog title={fileOf(source)} close={close} class="photo">
      <div class="stage">
        <Large image={image} key={image} />
        <button type="button" class="previous" aria-label="Previous" disabled={at === 0} onClick={() => step(-1)}>‹</button>
        <button type="button" class="next" aria-label="Next" disabled={at === list.length - 1} onClick={() => step(1)}>›</button>
      </div>
      <aside>
        <p class="place">{(at + 1).toLocaleString("en")} of {list.length.toLocaleString("en")}</p>
        <dl>{facts.map(([name, value]) => <><dt>{name}</dt><dd dir="auto">{value}</dd></>)}</dl>
        <div class="line">
          <GroupSelect value={to} choose={setTo} label="Group that it belongs to" but={group} />
          <button type="button" class="main" disabled={!to}
            onClick={async () => (await edit({ action: "move", images: [image], group: Number(to) })) && setTo("")}>
            Move
          </button>
        </div>
        <Why image={image} />
        {images.x.length > 0 && (
          <button type="button" onClick={() => { close(); showImages({ like: String(image) }); }}>More like this</button>
        )}
      </aside>
    </Dialog>
  );
}

/** The thumbnail is there at once; the large picture replaces it when it has come. */
function Large({ image }: { image: number }) {
  const [ready, setReady] = useState(false);
  useEffect(() => {
    const source = photo(image);
    if (!source) return;
    let current = true;
    const large = new Image();
    large.onload = () => current && setReady(true);
    large.src = source;
    return () => void (current = false);
  }, [image]);
  return <div class="large"><Thumb image={image} large={ready} key={String(ready)} /></div>;
}

/** The why: the three nearest of its group and of the runner-up. */
function Why({ image }: { image: number }) {
  const { images, questions } = data.value!;
  const group = images.group[image];
  const asked = questions.find((question) => question.image === image && question.group === group);
  const other = asked?.runner_up ?? images.runner_up[image];
  const own = asked?.own ?? (images.x.length ? nearest(images, image, members(images, group, image), 3) : []);
  const others = asked?.other ?? (other && images.x.length ? nearest(images, image, members(images, other, image), 3) : []);
  const three = (number: number, nearest: number[]) => nearest.length > 0 && (
    <section>
      <h3>nearest in <bdi>{titleOf(number)}</bdi></h3>
      <div class="few">
        {nearest.map((near) => (
          <button type="button" class="picture" key={near} onClick={() => openPhoto(near, [image, ...own, ...others])}>
            <Thumb image={near} />
          </button>
        ))}
      </div>
    </section>
  );
  return <div class="why">{three(group, own)}{other ? three(other, others) : null}</div>;
}
