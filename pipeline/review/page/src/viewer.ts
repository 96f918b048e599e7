// Which photo is open large, and which one is before and after it.
import { signal } from "@preact/signals";

export const viewer = signal<{ list: number[]; at: number } | null>(null);

export function openPhoto(image: number, list: number[]): void {
  const at = list.indexOf(image);
  viewer.value = at < 0 ? { list: [image], at: 0 } : { list, at };
}

export function step(by: number): void {
  const now = viewer.value;
  if (!now) return;
  const at = Math.min(now.list.length - 1, Math.max(0, now.at + by));
  if (at !== now.at) viewer.value = { ...now, at };
}

export type Asked = { kind: "merge"; group: number } | { kind: "split"; group: number } | { kind: "keys" } | { kind: "copy" };

/** The dialog that is open, but for the large photo. */
export const asked = signal<Asked | null>(null);

/** True where a key is text or belongs to a control, so it is no command. */
export function typing(event: KeyboardEvent): boolean {
  const target = event.target as HTMLElement;
  return Boolean(target.closest?.("input, select, textarea, dialog")) || event.altKey || event.metaKey || event.ctrlKey;
}
