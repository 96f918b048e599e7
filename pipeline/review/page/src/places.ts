// The geometry of the map: from 0..1 to pixels and back, which point is near, what is inside a line.
import type { Images } from "./types";

export type Point = [number, number];

export interface Zoom {
  x: number; // what is at the left edge, in 0..1
  y: number;
  scale: number;
}

const MARGIN = 0.02; // of the unit square, so that points at its edge are whole

export function toPixel(x: number, y: number, zoom: Zoom, width: number, height: number): Point {
  const fit = (v: number) => MARGIN + v * (1 - 2 * MARGIN);
  return [(fit(x) - zoom.x) * zoom.scale * width, (fit(y) - zoom.y) * zoom.scale * height];
}

/** The inverse but for the margin: where in the drawn plane a pixel is. */
export function toUnit([x, y]: Point, zoom: Zoom, width: number, height: number): Point {
  return [x / width / zoom.scale + zoom.x, y / height / zoom.scale + zoom.y];
}

const CELLS = 128; // along each side

/** The images by cell, so that the nearest is found among some tens and not all. */
export function byCell(images: Images, list: number[]): Map<number, number[]> {
  const cells = new Map<number, number[]>();
  for (const image of list) {
    const cell = cellOf(images.x[image]) * CELLS + cellOf(images.y[image]);
    const some = cells.get(cell);
    if (some) some.push(image);
    else cells.set(cell, [image]);
  }
  return cells;
}
const cellOf = (v: number): number => Math.min(CELLS - 1, Math.max(0, Math.floor(v * CELLS)));

const REACH = 9; // pixels

/** The image whose point is nearest to a pixel, if one is within reach. */
export function hit(
  cells: Map<number, number[]>, images: Images, at: Point, zoom: Zoom, width: number, height: number,
): number | null {
  const corner = (dx: number, dy: number) => plain(toUnit([at[0] + dx, at[1] + dy], zoom, width, height));
  const [low, high] = [corner(-REACH, -REACH), corner(REACH, REACH)];
  let best: number | null = null;
  let least = REACH * REACH;
  for (let cx = cellOf(low[0]); cx <= cellOf(high[0]); cx++) {
    for (let cy = cellOf(low[1]); cy <= cellOf(high[1]); cy++) {
      for (const image of cells.get(cx * CELLS + cy) ?? []) {
        const [x, y] = toPixel(images.x[image], images.y[image], zoom, width, height);
        const distance = (x - at[0]) ** 2 + (y - at[1]) ** 2;
        if (distance < least) [best, least] = [image, distance];
      }
    }
  }
  return best;
}

const plain = ([x, y]: Point): Point => [(x - MARGIN) / (1 - 2 * MARGIN), (y - MARGIN) / (1 - 2 * MARGIN)];

/** Whether (x, y) of the data lies in the polygon of toUnit's points: an odd number of edges to its right. */
export function inside(x: number, y: number, polygon: Point[]): boolean {
  const [px, py] = [MARGIN + x * (1 - 2 * MARGIN), MARGIN + y * (1 - 2 * MARGIN)];
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [polygon[i], polygon[j]];
    if (yi > py !== yj > py && px < ((xj - xi) * (py - yi)) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
}
