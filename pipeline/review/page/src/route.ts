// Where one is: tab, view and filters live in the URL's hash, so reload, back and a bookmark keep the place.
import { signal } from "@preact/signals";

export type Tab = "groups" | "check" | "odd";
export type View = "cards" | "images" | "map";

export interface Route {
  tab: Tab;
  view: View;
  promise: boolean; // in "To check": the check of 30 sure images
  group: string;
  state: string; // an index into STATES, or "" for all
  folder: string;
  split: string;
  from: string;
  to: string;
  text: string;
  order: string;
  like: string; // an image: the nearest to it, nearest first
  find: string; // in the cards: groups with this in their name
}

const START: Route = {
  tab: "groups", view: "cards", promise: false, group: "", state: "", folder: "", split: "", from: "", to: "",
  text: "", order: "", like: "", find: "",
};

export const FILTERS: (keyof Route)[] = ["group", "state", "folder", "split", "from", "to", "text", "like"];

function parse(hash: string): Route {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const route: Route = { ...START };
  for (const key of Object.keys(START) as (keyof Route)[]) {
    const value = given.get(key);
    if (value !== null) Object.assign(route, { [key]: key === "promise" ? value === "1" : value });
  }
  if (!["groups", "check", "odd"].includes(route.tab)) route.tab = "groups";
  if (!["cards", "images", "map"].includes(route.view)) route.view = "cards";
  return route;
}

export const route = signal<Route>(parse(location.hash));

function format(to: Route): string {
  const changed = (Object.keys(START) as (keyof Route)[]).filter((key) => to[key] !== START[key]);
  const words = new URLSearchParams(changed.map((key) => [key, to[key] === true ? "1" : String(to[key])]));
  return `#${words}`;
}

/** Goes there; another tab or view is a step that the browser's Back takes back, a filter is not. */
export function go(change: Partial<Route>): void {
  const to = { ...route.value, ...change };
  const step = to.tab !== route.value.tab || to.view !== route.value.view || to.promise !== route.value.promise;
  history[step ? "pushState" : "replaceState"](null, "", format(to));
  route.value = to;
  if (step) window.scrollTo(0, Math.min(window.scrollY, topOfTabs()));
}

const topOfTabs = (): number => {
  const tabs = document.querySelector(".tabs");
  return tabs ? tabs.getBoundingClientRect().top + window.scrollY : 0;
};

/** The images view with these filters and no others. */
export function showImages(filters: Partial<Route>): void {
  go({ ...START, tab: "groups", view: "images", ...filters });
}

export function clearFilters(): void {
  go(Object.fromEntries(FILTERS.map((key) => [key, START[key]])));
}

window.addEventListener("popstate", () => (route.value = parse(location.hash)));
window.addEventListener("hashchange", () => (route.value = parse(location.hash)));
