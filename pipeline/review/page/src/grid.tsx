// All images that the filters leave: a list box with virtual rows, so 100,000 scroll like 100.
import { Component } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { data } from "./data";
import { shown } from "./derive";
import { altOf, Thumb } from "./pictures";
import { clearSelection, select, selection, toggle } from "./selection";
import { asked, openPhoto, viewer } from "./viewer";
import { useWidth, useWindowed } from "./windowed";

const GAP = 4;

export function Grid() {
  const ref = useRef<HTMLDivElement>(null);
  const [active, setActive] = useState(0); // the place in the list that keys act on
  const anchor = useRef(0); // where a range begins
  const list = shown.value;
  const { set } = selection.value;
  const width = useWidth(ref);
  const columns = Math.max(3, Math.floor((width + GAP) / (132 + GAP)));
  const size = (width - GAP * (columns - 1)) / columns;
  const rows = Math.ceil(list.length / columns);
  const { first, last, flying } = useWindowed(ref, rows, width ? size + GAP : 0); // nothing until the width is known

  useEffect(() => {
    setActive(0);
    anchor.current = 0;
  }, [list]);

  const range = (from: number, to: number) => select(list.slice(Math.min(from, to), Math.max(from, to) + 1));

  const goTo = (to: number, extend: boolean) => {
    const at = Math.min(list.length - 1, Math.max(0, to));
    setActive(at);
    if (extend) range(anchor.current, at);
    else anchor.current = at;
    const top = ref.current!.getBoundingClientRect().top + Math.floor(at / columns) * (size + GAP);
    const bar = 120; // what sticks to the top and bottom
    if (top < bar) window.scrollBy(0, top - bar);
    else if (top + size > window.innerHeight - bar) window.scrollBy(0, top + size - window.innerHeight + bar);
  };

  const onKeyDown = (event: KeyboardEvent) => {
    const page = columns * Math.max(1, Math.floor((window.innerHeight - 240) / (size + GAP)));
    const by: Record<string, number> = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
      Home: -list.length, End: list.length,
    };
    if (event.key in by) goTo(active + by[event.key], event.shiftKey);
    else if (event.key === " ") toggle(list[active]);
    else if (event.key === "Enter") openPhoto(list[active], list);
    else return;
    event.preventDefault();
  };

  // All and none work wherever the focus is, but in a field or a dialog.
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if ((event.target as HTMLElement).closest?.("input, select, textarea") || viewer.value || asked.value) return;
      if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
        select(shown.value);
        event.preventDefault();
      } else if (event.key === "Escape") clearSelection();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);

  // One handler for all tiles: a click opens, in the corner or with Ctrl it selects, with Shift up to here.
  const onClick = (event: MouseEvent) => {
    const tile = (event.target as HTMLElement).closest<HTMLElement>("[data-at]");
    if (!tile) return;
    const at = Number(tile.dataset.at);
    const corner = (event.target as HTMLElement).closest(".tick") !== null;
    setActive(at);
    if (event.shiftKey) range(anchor.current, at);
    else if (corner || event.ctrlKey || event.metaKey || set.size) toggle(list[at]);
    else openPhoto(list[at], list);
    if (!event.shiftKey) anchor.current = at;
    ref.current!.focus({ preventScroll: true });
  };

  const tiles = [];
  for (let at = first * columns; at < Math.min(list.length, last * columns); at++) {
    tiles.push(
      <Tile
        key={list[at]} image={list[at]} at={at} count={list.length} size={size} selected={set.has(list[at])}
        x={(at % columns) * (size + GAP)} y={Math.floor(at / columns) * (size + GAP)}
        active={at === active} drawn={!flying} version={data.value!.version}
      />,
    );
  }
  return (
    <div
      ref={ref} class="grid" role="listbox" aria-label="Images" aria-multiselectable="true" tabIndex={0}
      aria-activedescendant={list.length ? `tile-${list[active]}` : undefined}
      style={{ height: `${width ? rows * (size + GAP) : 0}px` }} onKeyDown={onKeyDown} onClick={onClick}
    >
      {tiles}
    </div>
  );
}

interface TileProps {
  image: number;
  at: number;
  count: number;
  size: number;
  x: number;
  y: number;
  selected: boolean;
  active: boolean;
  drawn: boolean;
  version: number; // of the data: the alternative text names the group
}

/** Drawn again only if something of it changed: a frame of scrolling has time for the new row, not for all. */
class Tile extends Component<TileProps> {
  private loaded = false; // a picture that came stays while scrolling

  override shouldComponentUpdate(next: TileProps): boolean {
    return (Object.keys(next) as (keyof TileProps)[]).some((key) => next[key] !== this.props[key]);
  }

  override render({ image, at, count, size, x, y, selected, active, drawn }: TileProps) {
    this.loaded ||= drawn;
    return (
      <div
        id={`tile-${image}`} class={`tile${selected ? " selected" : ""}${active ? " active" : ""}`} role="option"
        aria-selected={selected} aria-posinset={at + 1} aria-setsize={count} data-at={at} title={data.peek()!.images.source[image]}
        aria-label={altOf(image)}
        style={{ width: `${size}px`, height: `${size}px`, transform: `translate(${x}px, ${y}px)` }}
      >
        {this.loaded && <Thumb image={image} />}
        <span class="tick" aria-hidden="true">✓</span>
      </div>
    );
  }
}
