// All images as points, near ones alike: point at one to see it, draw around some to select them.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { data } from "./data";
import { colorOf, fileOf, shown, titleOf } from "./derive";
import { byCell, hit, inside, toPixel, toUnit, type Point, type Zoom } from "./places";
import { Thumb } from "./pictures";
import { clearSelection, select, selection } from "./selection";
import { openPhoto } from "./viewer";
import { useWidth } from "./windowed";

type Tool = "rectangle" | "lasso" | "drag";
const TOOLS: [Tool, string][] = [["rectangle", "Rectangle"], ["lasso", "Lasso"], ["drag", "Pan"]];
const WHOLE: Zoom = { x: 0, y: 0, scale: 1 };

export function ImageMap() {
  const box = useRef<HTMLDivElement>(null);
  const points = useRef<HTMLCanvasElement>(null);
  const over = useRef<HTMLCanvasElement>(null);
  const [tool, setTool] = useState<Tool>("rectangle");
  const [zoom, setZoom] = useState<Zoom>(WHOLE);
  const [hovered, setHovered] = useState<{ image: number; at: Point } | null>(null);
  const path = useRef<Point[]>([]);
  const width = useWidth(box);
  const height = Math.max(320, Math.min(width * 0.7, window.innerHeight - 370));
  const { images } = data.value!;
  const list = shown.value;
  const { set } = selection.value;
  const cells = useMemo(() => byCell(images, list), [images.x, images.y, list]);

  useEffect(() => {
    if (width) draw(sized(points.current!, width, height), zoom, width, height, list, set);
  }, [width, height, zoom, list, selection.value, data.value!.version]);

  const outline = (trail: Point[]) => {
    const context = sized(over.current!, width, height);
    if (trail.length < 2) return;
    context.strokeStyle = getComputedStyle(box.current!).getPropertyValue("--accent");
    context.lineWidth = 2;
    context.beginPath();
    trail.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.closePath();
    context.stroke();
  };

  const where = (event: PointerEvent): Point => {
    const edge = over.current!.getBoundingClientRect();
    return [event.clientX - edge.left, event.clientY - edge.top];
  };
  const onDown = (event: PointerEvent) => {
    path.current = [where(event)];
    over.current!.setPointerCapture(event.pointerId);
    setHovered(null);
  };
  const onMove = (event: PointerEvent) => {
    const at = where(event);
    const trail = path.current;
    if (!trail.length) {
      const image = hit(cells, images, at, zoom, width, height);
      setHovered(image === null ? null : { image, at });
    } else if (tool === "drag") {
      const [x, y] = trail[trail.length - 1];
      setZoom((z) => ({ ...z, x: z.x - (at[0] - x) / width / z.scale, y: z.y - (at[1] - y) / height / z.scale }));
      trail.push(at);
    } else {
      if (tool === "rectangle") path.current = rectangle(trail[0], at);
      else trail.push(at);
      outline(path.current);
    }
  };
  const onUp = (event: PointerEvent) => {
    const trail = path.current;
    path.current = [];
    outline([]);
    if (!trail.length) return; // pressed elsewhere
    if (trail.length < 3) {
      const image = hit(cells, images, where(event), zoom, width, height);
      if (image !== null) openPhoto(image, list);
      return;
    }
    if (tool === "drag") return;
    const area = trail.map((point) => toUnit(point, zoom, width, height));
    if (!event.shiftKey && !event.ctrlKey) clearSelection();
    select(list.filter((image) => inside(images.x[image], images.y[image], area)));
  };
  const zoomBy = (factor: number, [x, y]: Point = [width / 2, height / 2]) =>
    setZoom((z) => {
      const scale = Math.min(60, Math.max(1, z.scale * factor));
      const [ux, uy] = toUnit([x, y], z, width, height);
      return scale === 1 ? WHOLE : { scale, x: ux - x / width / scale, y: uy - y / height / scale };
    });

  useEffect(() => {
    // Not a passive listener: with Ctrl the browser would zoom the page.
    const canvas = over.current!;
    const onWheel = (event: WheelEvent) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoomBy(event.deltaY < 0 ? 1.25 : 0.8, [event.offsetX, event.offsetY]);
    };
    canvas.addEventListener("wheel", onWheel, { passive: false });
    return () => canvas.removeEventListener("wheel", onWheel);
  }, [width, height]);

  return (
    <div class="map">
      <div class="line tools" role="toolbar" aria-label="Map">
        {TOOLS.map(([name, title]) => (
          <button type="button" aria-pressed={tool === name} onClick={() => setTool(name)}>{title}</button>
        ))}
        <button type="button" aria-label="Zoom in" onClick={() => zoomBy(1.6)}>+</button>
        <button type="button" aria-label="Zoom out" disabled={zoom.scale === 1} onClick={() => zoomBy(1 / 1.6)}>−</button>
        <small class="pointer">near points look alike; Ctrl and wheel zoom, Shift adds to the selection</small>
      </div>
      <div class="canvas" ref={box} style={{ height: `${height}px` }}>
        <canvas ref={points} aria-hidden="true" />
        <canvas ref={over} class={tool} role="img" aria-label={`Map of ${list.length} images by group; the view Images has the same ones as a list`}
          onPointerDown={onDown} onPointerMove={onMove} onPointerUp={onUp} onPointerLeave={() => setHovered(null)} />
        {hovered && (
          <div class="tip" style={tipPlace(hovered.at, width, height)}>
            <Thumb image={hovered.image} />
            <span><bdi>{fileOf(images.source[hovered.image])}</bdi><br />{titleOf(images.group[hovered.image])}</span>
          </div>
        )}
      </div>
    </div>
  );
}

const rectangle = ([x, y]: Point, [u, v]: Point): Point[] => [[x, y], [u, y], [u, v], [x, v]];

/** Beside the pointer, on the side that has room. */
const tipPlace = ([x, y]: Point, width: number, height: number) => ({
  ...(x < width / 2 ? { left: `${x + 14}px` } : { right: `${width - x + 14}px` }),
  ...(y < height / 2 ? { top: `${y + 14}px` } : { bottom: `${height - y + 14}px` }),
});

/** The canvas in the screen's own pixels, empty. */
function sized(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d")!;
  context.scale(ratio, ratio);
  return context;
}

function draw(context: CanvasRenderingContext2D, zoom: Zoom, width: number, height: number, list: number[], set: Set<number>) {
  const { images } = data.value!;
  const wanted = new Uint8Array(images.x.length);
  for (const image of list) wanted[image] = 1;
  const size = Math.min(7, (images.x.length > 20000 ? 2 : images.x.length > 3000 ? 3 : 5) * Math.sqrt(zoom.scale));
  // One color after another: changing the color for each point would cost most of the time.
  const colors = new Map<string, number[]>();
  const add = (color: string, image: number) => {
    const some = colors.get(color);
    if (some) some.push(image);
    else colors.set(color, [image]);
  };
  for (let i = 0; i < wanted.length; i++) if (!wanted[i]) add("#8883", i);
  for (const image of list) add(set.size ? (set.has(image) ? "#e11" : "#8886") : colorOf(images.group[image]), image);
  for (const [color, some] of colors) {
    context.fillStyle = color;
    for (const image of some) {
      const [x, y] = toPixel(images.x[image], images.y[image], zoom, width, height);
      if (x > -size && y > -size && x < width + size && y < height + size) context.fillRect(x - size / 2, y - size / 2, size, size);
    }
  }
}
