// The images that are selected, in the grid and on the map alike.
import { signal } from "@preact/signals";

/** A new wrapper says that the set changed: copying 100,000 members for each click would be felt. */
export const selection = signal<{ set: Set<number> }>({ set: new Set() });

export const isSelected = (image: number): boolean => selection.value.set.has(image);

export function toggle(image: number): void {
  const { set } = selection.value;
  if (!set.delete(image)) set.add(image);
  selection.value = { set };
}

export function select(images: Iterable<number>, add = true): void {
  const set = add ? selection.value.set : new Set<number>();
  for (const image of images) set.add(image);
  selection.value = { set };
}

export function clearSelection(): void {
  selection.value = { set: new Set() };
}
