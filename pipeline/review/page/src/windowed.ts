// Virtual scrolling: of many rows of one height, those that are on the screen.
import type { RefObject } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";

export interface Window {
  first: number; // first row to draw
  last: number; // one past the last
  flying: boolean; // scrolling so fast that pictures would be gone before they come
}

const SPARE = 1; // rows drawn beyond each edge

export function useWindowed(ref: RefObject<HTMLElement | null>, rows: number, height: number): Window {
  const [seen, setSeen] = useState<Window>({ first: 0, last: 0, flying: false });
  const before = useRef(0);
  useLayoutEffect(() => {
    let frame = 0;
    let settle = 0;
    const look = (flying: boolean) => {
      const box = ref.current;
      if (!box || !height) return;
      const top = -box.getBoundingClientRect().top;
      const first = Math.max(0, Math.floor(top / height) - SPARE);
      const last = Math.min(rows, Math.ceil((top + window.innerHeight) / height) + SPARE);
      setSeen((old) => old.first === first && old.last === last && old.flying === flying ? old : { first, last, flying });
    };
    const onScroll = () => {
      if (frame) return;
      frame = requestAnimationFrame(() => {
        frame = 0;
        const far = Math.abs(window.scrollY - before.current) > 1.5 * window.innerHeight;
        before.current = window.scrollY;
        clearTimeout(settle);
        if (far) settle = window.setTimeout(() => look(false), 90);
        look(far);
      });
    };
    look(false);
    window.addEventListener("scroll", onScroll, { passive: true });
    window.addEventListener("resize", onScroll);
    return () => {
      cancelAnimationFrame(frame);
      clearTimeout(settle);
      window.removeEventListener("scroll", onScroll);
      window.removeEventListener("resize", onScroll);
    };
  }, [rows, height]);
  return seen;
}

/** The width of an element, followed as it changes. */
export function useWidth(ref: RefObject<HTMLElement | null>): number {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(() => setWidth(ref.current?.clientWidth ?? 0));
    observer.observe(ref.current!);
    setWidth(ref.current!.clientWidth);
    return () => observer.disconnect();
  }, []);
  return width;
}
