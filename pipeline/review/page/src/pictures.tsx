// Thumbnails, and the promise that one is asked for only when it is (nearly) on the screen.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { data, photo, thumb } from "./data";
import { fileOf, titleOf } from "./derive";
import { openPhoto } from "./viewer";
import { STATES } from "./types";

/** What one who does not see the picture needs to know of it. */
export function altOf(image: number): string {
  const images = data.value!.images;
  return `${fileOf(images.source[image] ?? "")}, ${titleOf(images.group[image])}, ${STATES[images.state[image]] ?? ""}`;
}

export function Thumb({ image, large = false }: { image: number; large?: boolean }) {
  const [broken, setBroken] = useState(-1); // the image whose picture did not come
  const source = large ? photo(image) : thumb(image);
  const alt = altOf(image);
  if (!source || broken === image) {
    return (
      <span class="nopicture" role="img" aria-label={alt}>
        <bdi>{fileOf(data.value!.images.source[image] ?? "")}</bdi>
      </span>
    );
  }
  return <img src={source} alt={alt} decoding="async" draggable={false} onError={() => setBroken(image)} />;
}

/** A thumbnail that opens large; previous and next then go through `list`. */
export function Picture({ image, list, note }: { image: number; list: number[]; note?: string }) {
  return (
    <button type="button" class="picture" title={data.value!.images.source[image]} onClick={() => openPhoto(image, list)}>
      <Thumb image={image} />
      {note && <span class="note" dir="auto">{note}</span>}
    </button>
  );
}

export function Row({ images, list, label }: { images: number[]; list?: number[]; label: string }) {
  return (
    <div class="row" role="group" aria-label={label}>
      {images.map((image) => <Picture key={image} image={image} list={list ?? images} />)}
    </div>
  );
}

/** Holds a place of its own size, and has its content only while that is near the screen. */
export function Near({ children, class: name }: { children: () => ComponentChildren; class: string }) {
  const ref = useRef<HTMLDivElement>(null);
  const [near, setNear] = useState(false);
  useEffect(() => {
    const observer = new IntersectionObserver((entries) => setNear(entries[entries.length - 1].isIntersecting), {
      rootMargin: "150px",
    });
    observer.observe(ref.current!);
    return () => observer.disconnect();
  }, []);
  return <div ref={ref} class={name}>{near ? children() : null}</div>;
}
